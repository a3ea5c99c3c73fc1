"""A checkpoint is complete or absent, whenever the process that writes or removes it is killed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from qvl.errors import CheckpointError
from qvl.training import checkpoints
from qvl.training.checkpoints import (
    STATE,
    clear_partials,
    list_checkpoints,
    rotate,
    write_checkpoint,
    write_result,
)


class Killed(BaseException):
    """In the place of a kill: nothing that follows is done."""


def fill(folder: Path) -> None:
    for name in ("adapter.safetensors", "optimizer.safetensors", STATE):
        (folder / name).write_bytes(b"x")


def is_whole(checkpoint: Path) -> bool:
    return {path.name for path in checkpoint.iterdir()} == {"adapter.safetensors", "optimizer.safetensors", STATE}


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    made = [write_checkpoint(tmp_path, step, fill) for step in (2, 4, 10, 12)]
    rotate(tmp_path, 2, best=made[0])
    assert list_checkpoints(tmp_path) == [(2, made[0]), (10, made[2]), (12, made[3])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12", "checkpoint-2"]


@pytest.mark.parametrize("removal", ["rotate", "the same step again"])
def test_a_checkpoint_whose_removal_was_cut_short_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removal: str
) -> None:
    for step in (5, 10):
        write_checkpoint(tmp_path, step, fill)
    remove = os.unlink

    def unlink(path: str | Path, **kwargs: int) -> None:
        remove(path, **kwargs)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "unlink", unlink)
        if removal == "rotate":
            rotate(tmp_path, 1, best=None)
        else:
            write_checkpoint(tmp_path, 5, fill)
    left = list_checkpoints(tmp_path)
    assert [step for step, _ in left] == [10] and all(is_whole(path) for _, path in left)
    assert len(list(tmp_path.iterdir())) > 1
    clear_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_failure_to_write_leaves_what_was_there(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, 5, fill)

    def fail(folder: Path) -> None:
        fill(folder)
        raise Killed

    with pytest.raises(Killed):
        write_checkpoint(tmp_path, 10, fail)
    assert list_checkpoints(tmp_path) == [(5, first)] and list(tmp_path.iterdir()) == [first]


def test_all_of_a_checkpoint_and_of_a_result_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(path: Path) -> None:
        assert path.exists() and (path == tmp_path or not final.exists())
        synced.append(path.name)

    def fill_deep(folder: Path) -> None:
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        (folder / STATE).write_text("{}")

    monkeypatch.setattr(checkpoints, "_sync", note)
    final = tmp_path / "checkpoint-5"
    write_checkpoint(tmp_path, 5, fill_deep)
    assert {"adapter_config.json", "adapter", STATE} < set(synced) and synced[-1] == tmp_path.name
    synced.clear()
    final = tmp_path / "adapter"
    write_result(tmp_path, "adapter", fill_deep)
    assert {"adapter_config.json", "adapter", STATE} < set(synced) and synced[-1] == tmp_path.name


def test_windows_writes_out_what_was_opened_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[int, int] = {}
    binary = 1 << 30  # a flag that no other system has

    def open_file(path: Path, flags: int) -> int:
        assert path.is_file()  # it opens no folders
        handle = os.open(path, flags & ~binary)
        opened[handle] = flags
        return handle

    def sync(handle: int) -> None:
        if not opened[handle] & os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")
        assert opened[handle] & binary

    flags = {"O_RDONLY": os.O_RDONLY, "O_RDWR": os.O_RDWR, "O_BINARY": binary}
    windows = SimpleNamespace(name="nt", open=open_file, fsync=sync, close=os.close, **flags)
    monkeypatch.setattr(checkpoints, "os", windows)
    assert is_whole(write_checkpoint(tmp_path, 5, fill)) and opened


@pytest.mark.parametrize("of_folders", [True, False])
def test_a_file_system_may_be_unable_to_write_out_folders_but_not_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_folders: bool
) -> None:
    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    if of_folders:
        assert is_whole(write_checkpoint(tmp_path, 5, fill))
    else:
        with pytest.raises(CheckpointError, match=r"cannot be written \(Invalid argument\)"):
            write_checkpoint(tmp_path, 5, fill)
