"""Quantised weights and training: they do not go together, and the message says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qvl.errors import CheckpointError, QvlError, UsageError
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import Quantization
from qvl.profile import Profile
from qvl.training.run import Request, lay_out


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"quantize": "int8"}, UsageError, "quantised weights cannot learn; leave out quantize=int8"),
        ({"devices": "0,1"}, UsageError, "the devices of training are those of its processes; leave out devices"),
        ({"model": "QUANTISED"}, CheckpointError, "quantised to int4; fine-tuning takes the original"),
    ],
)
def test_quantised_weights_do_not_learn(
    changes: dict[str, Any], error: type[QvlError], words: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    quantise_folder(tiny_checkpoint, tmp_path / "quantised", Quantization.of("int4"))
    named = {key: value.replace("QUANTISED", str(tmp_path / "quantised")) for key, value in changes.items()}
    profile = Profile(command="finetune", model=str(tiny_checkpoint)).revised(named, "test")
    with pytest.raises(error, match=words):
        lay_out(profile, Request(tmp_path / "data.json", tmp_path / "out"), None)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
