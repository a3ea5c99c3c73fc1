"""Fetching single files of a downloaded model again: the same bytes as before, or none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from qvl.errors import DownloadError
from qvl.hub.digest import Digest, hash_file
from qvl.hub.download import Got, Request, ask, bring, check_room, distinct, is_there
from qvl.hub.manifest import FileRecord, Manifest
from qvl.hub.progress import Watcher
from qvl.hub.remote import RemoteFile, SourceError, checked
from qvl.hub.sources import SOURCES, Source
from qvl.hub.store import partial_folder
from qvl.hub.transfer import cannot_write, whole_path


def restore(request: Request, record: Manifest, watcher: Watcher) -> Got:
    """Fetch what a downloaded model has lost; files that have their size are left. See `repair`."""
    broken = record.broken(request.target)
    watcher.note(f"{request.model}: {len(broken)} of {len(record.files)} files are missing or cut short")
    source, count = repair(request, record, broken, watcher)
    return Got(request.model, request.target, "qvl", source, count)


def repair(request: Request, record: Manifest, broken: Sequence[FileRecord], watcher: Watcher) -> tuple[str, int]:
    """Fetch files again, first from where they came, at the same commit; the source's key and the bytes it sent.

    The caller has the download lock. Raises DownloadError, with the folder as it was.
    """
    sources = [source for source in request.sources if source.key != record.source]
    if record.source in SOURCES:
        sources.insert(0, SOURCES[record.source])
    partial = partial_folder(request.target)
    failures = []
    for source in sources:
        revision = (record.revision or None) if source.key == record.source else None
        try:
            partial.mkdir(parents=True, exist_ok=True)
            listed = {file.path: file for file in ask(source, request, revision, watcher).files}
            files = [_match(entry, listed.get(entry.path), source.key == record.source) for entry in broken]
            count = _fetch(source, files, request, watcher)
            _put_back(broken, files, request.target)
        except SourceError as failure:
            failures.append(f"{source.name}: {failure}")
            continue
        except OSError as error:
            raise cannot_write(request.target, error) from None
        shutil.rmtree(partial, ignore_errors=True)
        return source.key, count
    with contextlib.suppress(OSError):
        partial.rmdir()  # unless something has arrived
    why = "; ".join(failures)
    raise DownloadError(f"{request.target} could not be repaired; {why}; --rm removes it, to be downloaded anew")


def _match(entry: FileRecord, file: RemoteFile | None, same_source: bool) -> RemoteFile:
    """The file that a source has for an entry, if it is that one's content as far as it is stated."""
    if file is None or file.size != entry.size:
        raise SourceError(f"it no longer has this {entry.path}")
    if file.digest is None and not (same_source and entry.stated is None):
        raise SourceError(f"it does not say whether its {entry.path} is this one")
    if file.digest not in (Digest("sha256", entry.sha256), entry.stated):
        raise SourceError(f"it has another {entry.path}")
    return checked(file)


def _fetch(source: Source, files: Sequence[RemoteFile], request: Request, watcher: Watcher) -> int:
    partial = partial_folder(request.target)
    missing = distinct(file for file in files if not is_there(partial, file))
    check_room(missing, partial, files)
    return bring(source, missing, partial, request, watcher)


def _put_back(broken: Sequence[FileRecord], files: Sequence[RemoteFile], folder: Path) -> None:
    """New files take the place of broken ones, each in one step; whoever has an old one open keeps it."""
    partial = partial_folder(folder)
    for entry, file in zip(broken, files, strict=True):
        whole = whole_path(partial, file)
        if hash_file(whole).sha256 != entry.sha256:
            whole.unlink()
            raise SourceError(f"it has another {entry.path} by now")
    for position, (entry, file) in enumerate(zip(broken, files, strict=True)):
        whole = whole_path(partial, file)
        if any(file.key == later.key for later in files[position + 1 :]):  # two names for one content
            whole = Path(shutil.copyfile(whole, partial / "copy"))
        whole.replace(folder / entry.path)
