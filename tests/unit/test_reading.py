"""A damaged preprocessor file: which file, which key, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qvl.errors import CheckpointError
from qvl.model.config import ModelConfig
from qvl.processing.processor import Processor
from qvl.profile import Profile
from qvl.reading import load_processor

FILE = "preprocessor_config.json"


def read(folder: Path) -> Processor:
    return load_processor(folder, ModelConfig.from_folder(folder), Profile(model=str(folder)))


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, copy)
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [("patch_size", 0), ("image_std", [0, 0, 0]), ("image_mean", [0.5]), ("min_pixels", "x"), ("size", 5)],
)
def test_a_value_of_no_use_is_named_with_its_file(folder: Path, key: str, value: object) -> None:
    settings = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder / FILE}: {key} is ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "5", "null", "{", "\x00", "[" * 100_000])
def test_a_file_that_is_no_object_is_named(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder / FILE}: ") and "\n" not in str(caught.value)


def test_limits_the_wrong_way_round(folder: Path) -> None:
    settings = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**settings, "min_pixels": 9000, "max_pixels": 4000}))
    with pytest.raises(CheckpointError, match="min_pixels 9000 is more than max_pixels 4000"):
        read(folder)
