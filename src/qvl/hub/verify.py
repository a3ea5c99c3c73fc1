"""Reading a model's files again to see whether they are still what was downloaded; only broken ones are fetched."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qvl.errors import DownloadError
from qvl.hub import manifest, places
from qvl.hub.digest import Digest, hash_file
from qvl.hub.download import Got, Request, ask, bring, check_room, download, is_there
from qvl.hub.lock import download_lock, exclusive
from qvl.hub.manifest import FileRecord, Manifest
from qvl.hub.progress import Watcher
from qvl.hub.remote import RemoteFile, SourceError
from qvl.hub.sources import SOURCES, Source
from qvl.hub.store import is_whole, partial_folder
from qvl.hub.transfer import cannot_write, check, whole_path
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
    if manifest.read(target) is not None:
        with exclusive(download_lock(target), lambda holder: watcher.note(f"waiting for {holder}, who has it in work")):
            record = manifest.read(target)
            if record is not None:
                return _verify_own(request, record, watcher)
    found = (place for place in places.places(request.model) if (place.folder / "config.json").is_file())
    place = next(found, None) if request.folder is None else None
    if place is None:
        raise DownloadError(f"{target}: no model that qvl has downloaded is there")
    if place.keeper == "qvl":
        raise DownloadError(f"{place.folder}: was not downloaded by qvl, so what its files should be is not known")
    return _verify_foreign(request, place, watcher)


def restore(request: Request, watcher: Watcher) -> Got:
    """Fetch the files that a downloaded model has lost. The caller has its download lock. Raises DownloadError."""
    record = manifest.read(request.target)
    if record is None:
        raise DownloadError(f"{request.target}: no model that qvl has downloaded is there")
    broken = record.broken(request.target)
    watcher.note(f"{request.model}: {len(broken)} files are missing or cut short")
    source, count = _repair(request, record, broken, watcher)
    return Got(request.model, request.target, "qvl", source, count)


def _verify_own(request: Request, record: Manifest, watcher: Watcher) -> Checked:
    folder = request.target
    watcher.begin([(entry.path, entry.size) for entry in record.files])
    try:
        broken = [entry for entry in record.files if not _is_right(folder, entry, watcher)]
    finally:
        watcher.end()
    count = 0
    if broken:
        names = ", ".join(entry.path for entry in broken)
        if request.may_not_ask:
            raise DownloadError(f"{folder}: broken: {names}; without --offline and QVL_OFFLINE they are fetched again")
        watcher.note(f"{request.model}: broken: {names}")
        _, count = _repair(request, record, broken, watcher)
    else:
        _write(folder, replace(record, verified_at=now()))
    return Checked(request.model, folder, "qvl", len(record.files), tuple(entry.path for entry in broken), count)


def _is_right(folder: Path, entry: FileRecord, watcher: Watcher) -> bool:
    path = folder / entry.path
    try:
        if path.stat().st_size != entry.size:
            return False
        return hash_file(path, None, lambda count: watcher.moved(entry.path, count)).sha256 == entry.sha256
    except OSError:
        return False


def _repair(request: Request, record: Manifest, broken: Sequence[FileRecord], watcher: Watcher) -> tuple[str, int]:
    """Fetch the files again, from where they came if it still has them; the source's key and the bytes."""
    sources = [source for source in request.sources if source.key != record.source]
    if record.source in SOURCES:
        sources.insert(0, SOURCES[record.source])
    failures = []
    for source in sources:
        revision = (record.revision or None) if source.key == record.source else None
        try:
            count = _repair_from(source, revision, request, record, broken, watcher)
        except SourceError as failure:
            failures.append(f"{source.name}: {failure}")
            continue
        return source.key, count
    raise DownloadError(
        f"{request.target} could not be repaired; {'; '.join(failures)}; --rm removes it, to be downloaded anew"
    )


def _repair_from(
    source: Source,
    revision: str | None,
    request: Request,
    record: Manifest,
    broken: Sequence[FileRecord],
    watcher: Watcher,
) -> int:
    listed = {file.path: file for file in ask(source, request.model, revision, request.patience).files}
    files = [_match(entry, listed.get(entry.path), source.key == record.source) for entry in broken]
    folder, partial = request.target, partial_folder(request.target)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if not is_there(partial, file)]
        check_room(missing, partial, files)
        count = bring(source, missing, partial, request, watcher)
        for entry, file in zip(broken, files, strict=True):
            _put_back(whole_path(partial, file), folder / entry.path, entry)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    # What was not broken has been read just now only if all of it was; a lost file says nothing of the others.
    _write(folder, replace(record, verified_at=now()) if len(broken) == len(record.files) else record)
    return count


def _match(entry: FileRecord, file: RemoteFile | None, same_source: bool) -> RemoteFile:
    """The file that a source has for an entry, if it is that one's content as far as it is stated."""
    if file is None or file.size != entry.size:
        raise SourceError(f"it no longer has this {entry.path}")
    if file.digest in (Digest("sha256", entry.sha256), entry.stated) and (file.digest is not None or same_source):
        return file
    raise SourceError(f"it has another {entry.path}")


def _put_back(whole: Path, path: Path, entry: FileRecord) -> None:
    """A new file takes the place of the broken one in one step; whoever has the old one open keeps it."""
    if hash_file(whole).sha256 != entry.sha256:
        whole.unlink()
        raise SourceError(f"it has another {entry.path} by now")
    whole.replace(path)


def _verify_foreign(request: Request, place: places.Place, watcher: Watcher) -> Checked:
    stated = _named_by_digest(place.folder) if place.keeper == "huggingface" else _asked(request, place)
    watcher.begin([(file.path, file.size) for file in stated])
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


def _asked(request: Request, place: places.Place) -> list[RemoteFile]:
    """What the source behind another tool's cache states now: the cache itself keeps no digests."""
    if request.may_not_ask:
        raise DownloadError(f"{place.folder}: keeps no digests of its files; they are asked for over the network")
    source = SOURCES["modelscope" if place.keeper == "modelscope" else "bos"]
    try:
        return list(ask(source, request.model, None, request.patience).needed())
    except SourceError as failure:
        raise DownloadError(f"{request.model} cannot be checked; {source.name}: {failure}") from None


def _is_stated(folder: Path, file: RemoteFile, watcher: Watcher) -> bool:
    try:
        return check(folder / file.path, file, lambda count: watcher.moved(file.path, count)) is not None
    except OSError:
        return False


def _write(folder: Path, record: Manifest) -> None:
    try:
        manifest.write(folder, record)
    except OSError as error:
        raise cannot_write(folder, error) from None
