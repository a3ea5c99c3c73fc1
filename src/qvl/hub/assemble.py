"""From checked files to a model folder: put together out of sight, then given its name in one step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from qvl.errors import CheckpointError
from qvl.hub import manifest
from qvl.hub.digest import hash_file
from qvl.hub.manifest import FileRecord, Manifest
from qvl.hub.remote import Listing, RemoteFile, SourceError
from qvl.hub.transfer import cannot_write, whole_path
from qvl.hub.web import now
from qvl.model.checkpoint import find_pickle, find_shards
from qvl.model.safetensors_io import SafetensorsFile

_NEW, _PLAN = "new", "plan.json"


def recover(partial: Path) -> None:
    """Take apart again what a process that ended in the middle had begun to put together. Raises OSError."""
    new = partial / _NEW
    with contextlib.suppress(OSError, ValueError, AttributeError):
        plan = json.loads((partial / _PLAN).read_text(encoding="utf-8"))
        for path, key in plan.items():
            if (new / path).is_file():
                (new / path).replace(partial / f"{key}.whole")
    shutil.rmtree(new, ignore_errors=True)


def put_together(listing: Listing, files: Sequence[RemoteFile], partial: Path) -> Path:
    """Make the model's folder out of the whole files in `partial`; it is `partial`'s child still.

    Raises SourceError when it turns out not to be a model that can be loaded, DownloadError when it cannot be written.
    """
    new = partial / _NEW
    try:
        new.mkdir()
        records = tuple(record_of(file, whole_path(partial, file)) for file in files)
        plan = {file.path: file.key for file in files}
        (partial / _PLAN).write_text(json.dumps(plan), encoding="utf-8")
        for position, file in enumerate(files):
            if any(file.key == later.key for later in files[position + 1 :]):  # two names for one content
                shutil.copyfile(whole_path(partial, file), new / file.path)
            else:
                whole_path(partial, file).replace(new / file.path)
        _check_loadable(new, records)
        done = now()
        manifest.write(new, Manifest(listing.model, listing.source, listing.revision, records, done, done))
        _sync(new)
    except OSError as error:
        raise cannot_write(partial, error) from None
    return new


def put_in_place(new: Path, folder: Path) -> None:
    """Give a finished folder its name, which no folder has that is not empty; one that is gives its mode and owner.

    Raises DownloadError.
    """
    try:
        if folder.is_dir():
            _liken(new, folder)
            folder.rmdir()
        new.replace(folder)
        _sync(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _liken(new: Path, old: Path) -> None:
    """Give a folder the mode of another and, as far as this user may, its owner and group. Raises OSError."""
    was, now_is = old.stat(), new.stat()
    if sys.platform != "win32" and (was.st_uid, was.st_gid) != (now_is.st_uid, now_is.st_gid):
        for uid, gid in ((-1, was.st_gid), (was.st_uid, -1)):
            with contextlib.suppress(OSError):
                os.chown(new, uid, gid)
    new.chmod(stat.S_IMODE(was.st_mode))  # last: a change of owner takes bits away


def record_of(file: RemoteFile, path: Path) -> FileRecord:
    """What the manifest keeps of a file that was checked. Raises OSError."""
    stated = file.digest
    sha256 = stated.value if stated is not None and stated.kind == "sha256" else hash_file(path).sha256
    return FileRecord(file.path, file.size, sha256, stated)


def _check_loadable(folder: Path, records: Sequence[FileRecord]) -> None:
    """Whether the index and the shards belong together, and weights without a digest have the length they claim."""
    try:
        if find_pickle(folder) is None:
            find_shards(folder)
        for record in records:
            if record.stated is None and record.path.endswith(".safetensors"):
                with SafetensorsFile(folder / record.path):
                    pass
    except CheckpointError as error:
        raise SourceError(f"what it has is no whole model: {error}") from None


def _sync(folder: Path) -> None:
    """Have the names in a folder on disk; not every system can be asked to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
