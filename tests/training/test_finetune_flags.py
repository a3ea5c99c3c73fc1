"""Flags of `qvl finetune` that do not go together, and what a quiet dry run still says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.errors import UsageError
from qvl.model.device import own_device
from tests.training.runs import LORA, finetune_here, write_data


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cpu", "--devices", "0,1"], "--devices 0,1 says where to train, and so does device cpu"),
        (["--device", "gpu:1", "--devices", "0,1"], "and so does device gpu:1: leave out one"),
        (["--device", "gpu:1", "--nproc", "2"], "--device gpu:1 is one GPU for 2 processes"),
        (["--device", "gpu:1", "--tensor-parallel", "2"], "--device gpu:1 is one GPU for 2 processes"),
        (["--plot", "loss.png", "--dry-run"], "--plot draws what --dry-run does not do"),
    ],
)
def test_what_says_two_things_is_refused_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    run = finetune_here(capfd, tmp_path, tmp_path / "out", "demo", *flags)
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("\n") == 1


def test_processes_that_another_launcher_started_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    with pytest.raises(UsageError, match="--device gpu:1 is one GPU for 2 processes"):
        own_device("gpu:1")
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "1")
    assert own_device("gpu:1") == "gpu:1"


def test_a_quiet_dry_run_shows_its_estimate_and_nothing_else(
    tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, "data.json", ("A red cat.", "Two dogs run."))
    run = finetune_here(capfd, tmp_path, tmp_path / "out", tiny_checkpoint, *LORA, "--dry-run", "-q")
    assert run.returncode == 0
    learning, memory = run.stderr.splitlines()
    assert "parameters learn" in learning and "GiB: weights" in memory
