"""Checkpoints of a run: complete or absent, and no more of them than asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from qvl.errors import CheckpointError

STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".checkpoint-being-written"
_RESULT = ".result-being-written"
_LEFTOVERS = (".*being-written*", ".*being-removed")


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder that then appears as `checkpoint-STEP`. A failure leaves nothing behind."""
    partial = run / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    target = run / f"checkpoint-{step}"
    try:
        write(partial)
        _sync_all(partial)
        if target.exists():  # the same step again, after a resume
            _remove(target)
        partial.rename(target)
        _sync(run)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def write_result(run: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let `write` make a folder that then takes the place of RUN/`name`, if there is one from before."""
    partial, result = run / _RESULT, run / name
    try:
        write(partial)
        _sync_all(partial)
        shutil.rmtree(result, ignore_errors=True)
        partial.rename(result)
        _sync(run)
    except OSError as error:
        raise CheckpointError(f"{result}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return result


def clear_partials(run: Path) -> None:
    """Remove what a run that was killed had begun to write or to remove, which takes room on the disk."""
    for pattern in _LEFTOVERS:
        for path in run.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint, oldest first."""
    if not run.is_dir():
        return []
    found = [(int(match[1]), path) for path in run.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / STATE).is_file())


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint."""
    found = list_checkpoints(run)
    return found[-1][1] if found else None


def rotate(run: Path, limit: int, best: Path | None) -> None:
    """Keep the newest `limit`, and the best one whatever its age."""
    for _, path in list_checkpoints(run)[:-limit]:
        if path != best:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """Under another name first: what is left when the process is killed on the way does not look complete."""
    doomed = checkpoint.with_name(f".{checkpoint.name}-being-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(OSError):  # what cannot be removed takes room, and no more
        checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_writable(run: Path, needed_bytes: int) -> None:
    """Raise CheckpointError when the folder cannot be written or so many bytes more would not fit on its disk."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=run, prefix=".probe-") as probe:  # a name for each process of a run
            probe.write(b"x")
        free = shutil.disk_usage(run).free
    except OSError as error:
        raise CheckpointError(f"{run}: cannot be written ({error.strerror or error})") from None
    if free < needed_bytes:
        raise CheckpointError(
            f"{run}: {_size(free)} are free on its disk, what this run has yet to write takes {_size(needed_bytes)}"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _sync_all(folder: Path) -> None:
    """All that is in it, however deep, and the names of it."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Have the system write it out, so that a power cut does not leave a complete name over missing bytes."""
    folder, windows = path.is_dir(), os.name == "nt"
    if folder and windows:
        return
    # Windows writes out only what may be written, and O_BINARY is its word for leaving newlines alone.
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno == errno.EINVAL):  # which file systems of a network say of folders
            raise
    finally:
        os.close(handle)
