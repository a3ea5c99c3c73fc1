"""Weights whose files do not say how their matrices lie: each command names its own option, and takes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.e2e.running import Run
from tests.golden import GOLDEN

ADAPTER = str(GOLDEN / "adapter" / "language")
WEIGHTS = "model.safetensors"


@pytest.fixture
def silent(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of Hugging Face whose file lost its metadata."""
    folder = tmp_path / "silent"
    shutil.copytree(tiny_checkpoint, folder)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    return folder


def test_a_base_that_does_not_say_its_layout_is_merged(
    qvl: Run, silent: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    line = ("merge-lora", ADAPTER, "--base", str(silent))
    for more in ((), ("--no-check",)):
        code, out, err = qvl(*line, "-o", str(tmp_path / "out"), *more)
        assert (code, out) == (1, "") and err.endswith("is unknown; say --layout hf or --layout paddle\n")
    code, _, err = qvl(*line, "-o", str(tmp_path / "out"), "--layout", "torch")
    assert code == 2 and "--layout torch: hf or paddle was expected" in err
    assert qvl(*line, "-o", str(tmp_path / "out"), "--layout", "hf", "-q") == (0, f"{tmp_path / 'out'}\n", "")
    told = ("merge-lora", ADAPTER, "--base", str(tiny_checkpoint), "-o", str(tmp_path / "told"), "--no-check", "-q")
    assert qvl(*told)[0] == 0
    merged, wanted = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "told"))
    assert all(np.array_equal(merged[name], values) for name, values in wanted.items())


def test_a_profile_says_the_layout_of_what_is_quantised(qvl: Run, silent: Path, tmp_path: Path) -> None:
    code, out, err = qvl("quantize", str(silent), "-o", str(tmp_path / "out"), "-q")
    assert (code, out) == (1, "") and err.endswith("is unknown; say --layout hf or --layout paddle\n")
    (tmp_path / "config" / "profiles").mkdir(parents=True)
    profile = tmp_path / "config" / "profiles" / "mine.yaml"
    profile.write_text(f"extends: 2b\nmodel: {silent}\nweight_layout: hf\n")
    for name in ("mine", str(profile)):
        result = tmp_path / f"of-{Path(name).name}"
        assert qvl("quantize", name, "-o", str(result), "-q") == (0, f"{result}\n", "")
