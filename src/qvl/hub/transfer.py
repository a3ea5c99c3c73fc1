"""The bytes of one file: from wherever the last attempt ended, checked to the last one, never half taken for whole."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests

from qvl.errors import DownloadError
from qvl.hub.digest import Hasher, hash_file
from qvl.hub.remote import RemoteFile, SourceError
from qvl.hub.web import Web, read

_BLOCK = 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_WRONG_TRIES = 2  # whole downloads whose content is not what was stated, before it is given up
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class _Part:
    """What is there of a file: its bytes on disk, their digest, and how many they are."""

    file: RemoteFile
    path: Path
    stream: BinaryIO
    hasher: Hasher
    position: int

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.stream.write(view) :]
        self.hasher.update(data)
        self.position += len(data)

    def restart(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.hasher, self.position = Hasher(self.file.size, self.file.digest), 0


def whole_path(folder: Path, file: RemoteFile) -> Path:
    """Where a file lies, under the name of its content, once all of it is there and was checked."""
    return folder / f"{file.key}.whole"


def part_path(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.key}.part"


def arrived(folder: Path, file: RemoteFile) -> int:
    """How many bytes of a file earlier attempts have left."""
    try:
        size = part_path(folder, file).stat().st_size
    except OSError:
        return 0
    return size if size <= file.size else 0


def fetch(file: RemoteFile, folder: Path, web: Web, on_bytes: Callable[[int], None]) -> None:
    """Bring a file into `folder`, at `whole_path`, going on with what an earlier attempt left at `part_path`.

    on_bytes: called with the bytes gained beyond `arrived`; a negative number when they had to be thrown away.
    Raises SourceError when the source does not deliver, DownloadError when the file cannot be written, Stopped.
    """
    part_file = part_path(folder, file)
    try:
        if part_file.exists() and part_file.stat().st_size > file.size:
            part_file.unlink()
        with part_file.open("ab", buffering=0) as stream:
            hasher = Hasher(file.size, file.digest)
            part = _Part(file, part_file, stream, hasher, _rehash(part_file, hasher))
            _complete(part, web, on_bytes)
            os.fsync(stream.fileno())
        part_file.replace(whole_path(folder, file))
    except OSError as error:
        raise cannot_write(folder, error) from None


def cannot_write(folder: Path, error: OSError) -> DownloadError:
    """The one clear error of a folder that takes no more."""
    if error.errno in FULL:
        return DownloadError(
            f"{folder.parent}: the disk is full; what has arrived is kept, and the same command goes on from there"
        )
    return DownloadError(f"{error.filename or folder}: cannot be written ({error.strerror or error})")


def _rehash(path: Path, hasher: Hasher) -> int:
    with path.open("rb", buffering=0) as file:
        position = 0
        while block := file.read(_BLOCK):
            hasher.update(block)
            position += len(block)
    return position


def _complete(part: _Part, web: Web, on_bytes: Callable[[int], None]) -> None:
    """Go on until the file has its size and its digest."""
    failures = wrong = 0
    while True:
        if part.position == part.file.size:
            if part.hasher.agrees():
                return
            on_bytes(-part.position)
            part.restart()
            wrong += 1
            if wrong == _WRONG_TRIES or part.file.size == 0:
                raise SourceError(f"{part.file.path} arrived {wrong} times with other bytes than the source states")
        before = part.position
        try:
            _stream(part, web, on_bytes)
        except SourceError as failure:
            failures = failures + 1 if part.position <= before else 0
            named = SourceError(f"{part.file.path}: {failure}", passing=failure.passing, wait=failure.wait)
            web.recover(named, failures)


def _stream(part: _Part, web: Web, on_bytes: Callable[[int], None]) -> None:
    """One request for what is missing. Raises SourceError when less, or more, than that arrives."""
    headers = {"Range": f"bytes={part.position}-"} if part.position else {}
    with web.open(part.file.url, headers) as answer:
        # A server that does not know ranges sends everything again: what is there already is passed over.
        known = part.position - _start(answer, part)
        while part.position < part.file.size:
            block = read(answer, _BLOCK)
            if not block:
                raise SourceError("the connection was cut", passing=True)
            web.rest(0)
            fresh = block[known:]
            known = max(0, known - len(block))
            fresh = fresh[: part.file.size - part.position]
            if fresh:
                part.append(fresh)
                on_bytes(len(fresh))
        if "Content-Length" not in answer.headers and read(answer, 1):
            on_bytes(-part.position)
            part.restart()
            raise SourceError("more arrived than the source says the file has", passing=True)


def _start(answer: requests.Response, part: _Part) -> int:
    """The position in the file of the first byte of an answer. Raises SourceError when it is not part of this file."""
    size, length = part.file.size, answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != part.position or found[3] not in (str(size), "*"):
            raise SourceError("a part of the file was answered with another", passing=True)
        return part.position
    if length.isdecimal() and int(length) != size:
        raise SourceError(f"it has {int(length):,} bytes there, not the {size:,} that the source states", passing=True)
    return 0


def check(path: Path, file: RemoteFile, on_bytes: Callable[[int], None] | None = None) -> Hasher | None:
    """The digests of a file on disk if it is what a source states; else None. Raises OSError."""
    if path.stat().st_size != file.size:
        return None
    hasher = hash_file(path, file.digest, on_bytes)
    return hasher if hasher.agrees() else None
