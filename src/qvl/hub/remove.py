"""Removing a model: out of sight in one step, and never from under a process that loads it or another tool."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from glob import escape
from pathlib import Path

from qvl.errors import DownloadError, UsageError
from qvl.hub import manifest, places
from qvl.hub.lock import BusyError, download_lock, exclusive, read_lock
from qvl.hub.store import partial_folder
from qvl.hub.transfer import cannot_write

_ASIDE = ".removed-"


def remove(model: str, folder: Path | None = None) -> int:
    """Remove a model that qvl has downloaded, or begun to; the bytes that were freed.

    folder: where it is, in place of qvl's store. Raises UsageError when it is not there or not qvl's to remove, and
    DownloadError when a process uses or downloads it.
    """
    target = folder if folder is not None else places.store_folder() / model
    partial = partial_folder(target)
    there = [path for path in (target, partial, *_half_removed(target)) if path.exists()]
    if not there:
        raise UsageError(f"{model} is nothing that qvl has downloaded{_elsewhere(model) if folder is None else ''}")
    if target.exists():
        record = manifest.read(target)
        if record is None or record.model != model:
            raise UsageError(f"{target}: is not {model} as qvl has downloaded it; remove it by hand")
    try:
        with exclusive(download_lock(target)), exclusive(read_lock(target)):
            freed = sum(_frees(path) for path in there)
            for path in there:
                _remove_folder(path, target.name)
    except BusyError as error:
        raise DownloadError(f"{model} is in use by {error}; end that first") from None
    except OSError as error:
        raise cannot_write(target, error) from None
    if folder is None:
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # that of the organisation, if this was its last model
    return freed


def _remove_folder(folder: Path, name: str) -> None:
    """A process that ends in the middle leaves nothing that looks like a model."""
    aside = Path(tempfile.mkdtemp(prefix=f".{name}{_ASIDE}", dir=folder.parent))
    folder.replace(aside / "old")
    shutil.rmtree(aside)


def _half_removed(target: Path) -> list[Path]:
    """What a process has left that was killed while it removed the model."""
    return list(target.parent.glob(f".{escape(target.name)}{_ASIDE}*"))


def _frees(folder: Path) -> int:
    """Bytes that go with a folder: not those of links, and of hard links only what nobody else has."""
    files = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(status.st_size for status in files if status.st_nlink == 1)


def _elsewhere(model: str) -> str:
    """Whose it is, if another tool has it."""
    for place in places.places(model):
        if places.holds(place.folder):
            return f"; {place.folder} is in {places.KEEPERS[place.keeper]}, whose own tools remove it"
    return ""
