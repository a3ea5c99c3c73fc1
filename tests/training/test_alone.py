"""Two runs are not at work in one output folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import paddle
import pytest

from qvl.errors import UsageError
from qvl.hub import lock
from qvl.training import finetune
from qvl.training.alone import alone, refuse_taken
from tests.training.test_runs import Silent, laid_out

TAKEN = rf"out: process {os.getpid()} on .* is training there; wait for it, or choose another --output"


def test_a_folder_is_one_runs_until_it_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone(out):
        with pytest.raises(UsageError, match=TAKEN), alone(out):
            pass
        with pytest.raises(UsageError, match=TAKEN):
            refuse_taken(out)
    assert list(out.iterdir()) == []
    refuse_taken(out)
    with alone(out):
        pass


def test_where_there_are_no_locks_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_try_lock", none)
    with pytest.warns(UserWarning, match="its file system has no locks"), alone(tmp_path):
        refuse_taken(tmp_path)


def test_a_second_run_is_refused_and_removes_nothing(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = laid_out(data / "data.json", tiny_checkpoint, out)
    partial = out / ".checkpoint-being-written"
    partial.mkdir()  # by the first run
    with alone(out):
        with pytest.raises(UsageError, match=TAKEN):
            finetune.train(run, Silent())
        with pytest.raises(UsageError, match=TAKEN):  # before the data is read
            laid_out(tmp_path / "no.json", tiny_checkpoint, out)
    assert partial.is_dir()


def test_the_other_processes_of_a_run_do_not_mind_its_first(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle.distributed, "get_rank", lambda: 1)
    with alone(tmp_path / "out"):
        laid_out(data / "data.json", tiny_checkpoint, tmp_path / "out")
