"""Writing weights: what cannot be stored is told, and what makes a folder complete is copied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import CheckpointError
from qvl.model.checkpoint_writer import copy_processor_files, write_weights


def test_numbers_too_large_for_float16_name_their_tensor(tmp_path: Path) -> None:
    values = {"small": np.full((2, 3), 60000, np.float32), "large": np.array([[1, 2, -1e5]], np.float32)}
    shapes = {name: array.shape for name, array in values.items()}
    with pytest.raises(CheckpointError, match=r"large has numbers up to 1e\+05, too large for float16"):
        write_weights(tmp_path, shapes, "float16", lambda name: [values[name]])
    assert list(tmp_path.iterdir()) == []
    write_weights(tmp_path, shapes, "bfloat16", lambda name: [values[name]])


def test_infinity_stays_infinity(tmp_path: Path) -> None:
    write_weights(tmp_path, {"a": (1,)}, "float16", lambda _: [np.array([np.inf], np.float32)])


@pytest.mark.parametrize("limit", [None, 8])
def test_one_file_or_shards(tmp_path: Path, limit: int | None) -> None:
    shapes = {"b": (2,), "a": (2,)}
    write_weights(tmp_path, shapes, "float32", lambda _: [np.zeros(2, np.float32)], shard_bytes=limit)
    if limit is None:
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert list(index["weight_map"]) == ["a", "b"] and index["metadata"] == {"total_size": 16}


def test_a_saved_folder_keeps_processor_config(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "processor_config.json").write_text("{}")
    copy_processor_files(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "processor_config.json").is_file()
