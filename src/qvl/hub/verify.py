"""Reading a model's files again to see whether they are still what was downloaded; only broken ones are fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qvl.errors import DownloadError
from qvl.hub import manifest, places
from qvl.hub.digest import Digest, hash_file
from qvl.hub.download import Request, ask, download, waiting
from qvl.hub.lock import download_lock, exclusive
from qvl.hub.manifest import FileRecord, Manifest
from qvl.hub.progress import Watcher
from qvl.hub.remote import RemoteFile, SourceError
from qvl.hub.repair import repair
from qvl.hub.sources import SOURCES
from qvl.hub.store import is_whole
from qvl.hub.transfer import check
from qvl.hub.web import now


@dataclass(frozen=True)
class Checked:
    """A model whose every file was read. folder: where it is now. broken: names of files that were not right.

    bytes: what was fetched to repair them.
    """

    model: str
    folder: Path
    keeper: places.Keeper
    files: int
    broken: tuple[str, ...]
    bytes: int = 0


def verify(request: Request, watcher: Watcher | None = None) -> Checked:
    """Read a model's files, compare them with what was stated of them, and repair what is broken.

    Another tool's cache is read and never written: what is broken there is repaired in a copy in qvl's store, which
    shares the files that are right. Raises DownloadError: no such model, broken and offline, not to be repaired.
    """
    watcher = watcher or Watcher()
    target = request.target
    record = manifest.read(target)
    if record is not None:
        return _verify_own(request, record, watcher)
    found = (place for place in places.places(request.model) if places.holds(place.folder, "config.json"))
    place = next(found, None) if request.folder is None else None
    if place is None:
        raise DownloadError(f"{target}: no model that qvl has downloaded is there")
    if place.keeper == "qvl":
        raise DownloadError(f"{place.folder}: was not downloaded by qvl, so what its files should be is not known")
    return _verify_foreign(request, place, watcher)


def _verify_own(request: Request, record: Manifest, watcher: Watcher) -> Checked:
    folder = request.target
    broken, count = _wrong(folder, record.files, watcher), 0
    if broken:
        names = ", ".join(entry.path for entry in broken)
        if request.may_not_ask:
            raise DownloadError(f"{folder}: broken: {names}; without --offline and QVL_OFFLINE they are fetched again")
        with exclusive(download_lock(folder), waiting(watcher)):
            # Another process may have repaired it while this one read or waited.
            left = _wrong(folder, broken, watcher)
            if left:
                watcher.note(f"{request.model}: broken: {', '.join(entry.path for entry in left)}")
                _, count = repair(request, record, left, watcher)
    with contextlib.suppress(OSError):  # a store that may only be read keeps the date of its download
        manifest.write(folder, replace(record, verified_at=now()))
    return Checked(request.model, folder, "qvl", len(record.files), tuple(entry.path for entry in broken), count)


def _wrong(folder: Path, entries: Sequence[FileRecord], watcher: Watcher) -> list[FileRecord]:
    """The files that are not what was downloaded; every byte of them is read."""
    watcher.begin([(entry.path, entry.size, 0) for entry in entries])
    try:
        return [entry for entry in entries if not _is_right(folder, entry, watcher)]
    finally:
        watcher.end()


def _is_right(folder: Path, entry: FileRecord, watcher: Watcher) -> bool:
    path = folder / entry.path
    try:
        if path.stat().st_size != entry.size:
            return False
        return hash_file(path, None, lambda count: watcher.moved(entry.path, count)).sha256 == entry.sha256
    except OSError:
        return False


def _verify_foreign(request: Request, place: places.Place, watcher: Watcher) -> Checked:
    stated = _named_by_digest(place.folder) if place.keeper == "huggingface" else []
    if not _covers(stated, place.folder):
        stated = _asked(request, place, watcher)
    watcher.begin([(file.path, file.size, 0) for file in stated])
    try:
        broken = [file.path for file in stated if not _is_stated(place.folder, file, watcher)]
    finally:
        watcher.end()
    if not broken and is_whole(place.folder):
        return Checked(request.model, place.folder, place.keeper, len(stated), ())
    whose = places.KEEPERS[place.keeper]
    if request.may_not_ask:
        raise DownloadError(f"{place.folder}: broken or missing: {', '.join(broken) or 'weights'}, in {whose}")
    watcher.note(f"{request.model}: broken in {whose}: {', '.join(broken) or 'files are missing'}")
    got = download(replace(request, own=True), watcher)
    return Checked(request.model, got.folder, "qvl", len(stated), tuple(broken), got.bytes)


def _named_by_digest(snapshot: Path) -> list[RemoteFile]:
    """The files of a Hugging Face snapshot: each links to a blob that has the name of its digest."""
    files = []
    for path in sorted(snapshot.iterdir()):
        blob = path.resolve()
        for digest in (Digest("sha256", blob.name), Digest("git-sha1", blob.name)):
            if digest.is_sound and blob.is_file():
                files.append(RemoteFile(path.name, blob.stat().st_size, "", digest))
    return files


def _covers(stated: list[RemoteFile], folder: Path) -> bool:
    """Whether all weights are stated. In a cache without links, on Windows say, files have their own names."""
    known = {file.path for file in stated}
    return bool(stated) and all(path.name in known for path in folder.glob("*.safetensors"))


def _asked(request: Request, place: places.Place, watcher: Watcher) -> list[RemoteFile]:
    """What the source behind another tool's cache states now: the cache itself keeps no digests."""
    if request.may_not_ask:
        raise DownloadError(f"{place.folder}: keeps no digests of its files; they are asked for over the network")
    source = SOURCES[{"modelscope": "modelscope", "huggingface": "huggingface"}.get(place.keeper, "bos")]
    revision = place.folder.name if place.keeper == "huggingface" else None  # a snapshot has the name of its commit
    try:
        return list(ask(source, request, revision, watcher).needed())
    except SourceError as failure:
        raise DownloadError(f"{request.model} cannot be checked; {source.name}: {failure}") from None


def _is_stated(folder: Path, file: RemoteFile, watcher: Watcher) -> bool:
    try:
        return check(folder / file.path, file, lambda count: watcher.moved(file.path, count)) is not None
    except OSError:
        return False
