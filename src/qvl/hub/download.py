"""Getting a model: from another tool's cache, from what an earlier run has left, or from the sources in their order."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qvl.errors import DownloadError
from qvl.hub import manifest, places
from qvl.hub.assemble import put_in_place, put_together, recover
from qvl.hub.linking import link_cached
from qvl.hub.lock import download_lock, exclusive
from qvl.hub.parallel import fetch_all
from qvl.hub.progress import Watcher
from qvl.hub.remote import Listing, RemoteFile, SourceError, total
from qvl.hub.sources import Source, parse_order
from qvl.hub.store import is_pickled, is_whole, partial_folder
from qvl.hub.transfer import arrived, cannot_write, part_path, whole_path
from qvl.hub.web import Patience, Web
from qvl.network import is_offline

JOBS = 4
_HASTY_TRIES = 2
_SPARE = 16 * 1024 * 1024  # bytes that a file system takes for itself, manifests and names


@dataclass(frozen=True)
class Request:
    """What is to be downloaded and how.

    folder: where its files go; None: qvl's store, unless another tool's cache has the whole model. sources: in the
    order in which they are tried. jobs: files at a time. offline: touch no network. own: have a copy in qvl's
    store even if another tool's cache has the model, linked where its files are right.
    """

    model: str
    folder: Path | None = None
    sources: tuple[Source, ...] = field(default_factory=lambda: parse_order("auto", "auto"))
    jobs: int = JOBS
    offline: bool = False
    own: bool = False
    patience: Patience = field(default_factory=Patience.from_environment)

    @property
    def target(self) -> Path:
        return self.folder if self.folder is not None else places.store_folder() / self.model

    @property
    def may_not_ask(self) -> bool:
        return self.offline or is_offline()


@dataclass(frozen=True)
class Got:
    """A model that is here now. keeper: whose folder it is. bytes: what came over the network."""

    model: str
    folder: Path
    keeper: places.Keeper
    source: str | None = None
    bytes: int = 0

    @property
    def was_here(self) -> bool:
        return self.source is None


def download(request: Request, watcher: Watcher | None = None) -> Got:
    """Have a model on this machine, whole and checked; at once if it already is.

    Raises DownloadError: no source has it or delivers it, no room, a folder that cannot be written.
    """
    watcher, target = watcher or Watcher(), request.target
    if (here := _already(request)) is not None:
        return here
    if request.may_not_ask:
        begun = target.exists() or partial_folder(target).exists()
        what = "is here in part only" if begun else "is not on this machine"
        raise DownloadError(f"{request.model} {what}, and --offline or QVL_OFFLINE forbids to fetch it")
    with exclusive(download_lock(target), waiting(watcher)):
        if (here := _already(request)) is not None:  # by whom we have waited for
            return here
        _check_free_of_others(target)
        if (record := manifest.read(target)) is not None:
            from qvl.hub.repair import restore  # which is built on this module

            return restore(request, record, watcher)
        partial = partial_folder(target)
        with _writing(target):
            partial.mkdir(parents=True, exist_ok=True)
        try:
            got = _from_sources(request, partial, watcher)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.rmdir()  # unless something has arrived
            raise
        shutil.rmtree(partial, ignore_errors=True)
        return got


def waiting(watcher: Watcher) -> Callable[[str], None]:
    """What to do when somebody else has a model in work: say so, and wait."""
    return lambda holder: watcher.note(f"waiting for {holder}, who has it in work")


def _already(request: Request) -> Got | None:
    """The model if all of it is here, in its folder or, when no folder was named, in another tool's cache."""
    record = manifest.read(request.target)
    if record is not None and record.model != request.model:
        raise DownloadError(f"{request.target}: {record.model} is there; name another folder for {request.model}")
    if is_whole(request.target) and (record is not None or request.folder is None):
        return Got(request.model, request.target, "qvl")
    if request.folder is None and not request.own:
        for place in places.places(request.model):
            # Pickled weights are no reason not to get others, which load without running anybody's code.
            if is_whole(place.folder) and (place.keeper == "qvl" or not is_pickled(place.folder)):
                return Got(request.model, place.folder, place.keeper)
    return None


def _check_free_of_others(target: Path) -> None:
    """A folder with something else in it is not ours to fill or to replace."""
    with _writing(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())) and manifest.read(target) is None:
            raise DownloadError(f"{target}: has something in it that qvl did not put there; name another folder")
        # It is empty, and another would take its place: whoever called would stand in a folder that is gone.
        if target.is_dir() and target.samefile(os.curdir) and manifest.read(target) is None:
            raise DownloadError(f"{target}: is the working directory; name a folder inside it, or call from another")
        if target.is_mount():  # files gather beside the folder, on another disk, and could not be put in its place
            raise DownloadError(f"{target}: another disk begins here; name a folder inside it")


def _from_sources(request: Request, partial: Path, watcher: Watcher) -> Got:
    """Try the sources in their order; say so when one fails and another is left."""
    failures = []
    for source in request.sources:
        try:
            return _from_source(source, request, partial, watcher)
        except SourceError as failure:
            failures.append(f"{source.name}: {failure}")
            if len(failures) < len(request.sources):
                watcher.note(f"{failures[-1]}; trying the next source")
    raise DownloadError(f"{request.model} could not be downloaded; {'; '.join(failures)}")


def _from_source(source: Source, request: Request, partial: Path, watcher: Watcher) -> Got:
    listing = ask(source, request, None, watcher)
    files = listing.needed()
    with _writing(partial):
        recover(partial)
        missing = [file for file in files if not is_there(partial, file)]
        linked = link_cached(request.model, missing, partial, watcher)
        missing = distinct(file for file in missing if file not in linked)
        check_room(missing, partial, files)
    count = bring(source, missing, partial, request, watcher)
    put_in_place(put_together(listing, files, partial), request.target)
    return Got(request.model, request.target, "qvl", source.key, count)


def ask(source: Source, request: Request, revision: str | None, watcher: Watcher) -> Listing:
    """What a source has of a model. Raises SourceError, sooner while there is another source to ask."""
    patience = request.patience
    if source.key != request.sources[-1].key:
        patience = replace(patience, tries=min(patience.tries, _HASTY_TRIES))
    web = Web(source.auth(), patience, tell=watcher.note)
    try:
        return source.listing(request.model, revision, web)
    finally:
        web.close()


def bring(source: Source, files: Sequence[RemoteFile], partial: Path, request: Request, watcher: Watcher) -> int:
    """Fetch files into `partial`; the bytes that came over the network. Raises SourceError, DownloadError."""
    if not files:
        return 0
    auth = source.auth()
    begun = [(file.path, file.size, arrived(partial, file)) for file in files]
    missing = total(files) - sum(count for _, _, count in begun)
    watcher.note(f"{request.model} from {source.name}: {len(files)} files, {readable(missing)}")
    watcher.begin(begun)

    def open_web(stop: threading.Event) -> Web:
        return Web(auth, request.patience, stop, watcher.note)

    try:
        fetch_all(files, partial, open_web, request.jobs, watcher)
    finally:
        watcher.end()
    return missing


def check_room(missing: Sequence[RemoteFile], partial: Path, files: Sequence[RemoteFile]) -> None:
    """Raises DownloadError when the disk has no room for what is missing of `files`, stale leftovers removed."""
    needed = total(missing) - sum(arrived(partial, file) for file in missing)
    if not needed:
        return
    if needed + _SPARE > shutil.disk_usage(partial).free:
        _drop_others(partial, files)
    free = shutil.disk_usage(partial).free
    if needed + _SPARE > free:
        raise DownloadError(
            f"{partial.parent}: {readable(needed + _SPARE)} are needed and {readable(free)} are free; make room, or "
            "choose another place with --dir or QVL_HOME"
        )


def readable(count: int) -> str:
    """A number of bytes for people."""
    value, units = float(count), ["bytes", "KB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("bytes", "KB") else f"{value:.1f} {units[0]}"


def is_there(partial: Path, file: RemoteFile) -> bool:
    return whole_path(partial, file).is_file() and _size(whole_path(partial, file)) == file.size


def _drop_others(partial: Path, files: Sequence[RemoteFile]) -> None:
    """Remove what earlier runs have left of other contents, such as of an older revision or another source."""
    kept = {path for file in files for path in (whole_path(partial, file), part_path(partial, file))}
    for path in partial.iterdir():
        if path.suffix in (".part", ".whole") and path not in kept:
            path.unlink()


def distinct(files: Iterator[RemoteFile]) -> list[RemoteFile]:
    """Each content once, though two files may have it."""
    return list({file.key: file for file in files}.values())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from None
