"""Files that another tool has already downloaded: linked into a download, never copied.

A hard link where the file system allows it, so that the other tool may clean up; else a symbolic one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from qvl.hub import places
from qvl.hub.progress import Watcher
from qvl.hub.remote import RemoteFile
from qvl.hub.transfer import check, whole_path


def link_cached(model: str, files: Sequence[RemoteFile], folder: Path, watcher: Watcher) -> list[RemoteFile]:
    """Link what other tools have of `files` into `folder`, at `whole_path`, after reading it to the end.

    Files without a stated digest are left out: their size says too little. Returns those that were linked.
    """
    found = [(file, paths) for file in files if file.digest is not None and (paths := list(_same_size(model, file)))]
    if not found:
        return []
    watcher.note(f"checking {len(found)} files that other tools have downloaded")
    watcher.begin([(file.path, file.size, 0) for file, _ in found])
    try:
        return [file for file, paths in found if any(_linked(path, file, folder, watcher) for path in paths)]
    finally:
        watcher.end()


def _same_size(model: str, file: RemoteFile) -> Iterator[Path]:
    """Files elsewhere that may be this one."""
    if file.digest is not None and file.digest.kind != "md5":
        blobs = places.huggingface_cache() / f"models--{model.replace('/', '--')}" / "blobs"
        candidates = [blobs / file.digest.value]
    else:
        candidates = []
    candidates += [place.folder / file.path for place in places.places(model)]
    seen = set()
    for path in candidates:
        try:
            real = path.resolve(strict=True)
            if real.is_file() and real.stat().st_size == file.size and real not in seen:
                seen.add(real)
                yield real
        except OSError:
            continue


def _linked(path: Path, file: RemoteFile, folder: Path, watcher: Watcher) -> bool:
    try:
        if check(path, file, lambda count: watcher.moved(file.path, count)) is None:
            watcher.moved(file.path, -file.size)
            return False
        link(path, whole_path(folder, file))
    except OSError:
        return False
    return True


def link(path: Path, target: Path) -> None:
    """Make `target` a second name of the file at `path`. Raises OSError where neither kind of link can be made."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError:
        target.symlink_to(path)
