"""One question about many pictures and clips: `--each` turns files, folders and patterns into records."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from qvl.cli import render
from qvl.cli.batch_input import ListRecords, digest
from qvl.cli.media import (
    CLIP_ENDINGS,
    PICTURE_ENDINGS,
    STDIN,
    UNREAD_ENDINGS,
    StandardInput,
    clip,
    medium,
    natural,
)
from qvl.cli.options import MediaOptions
from qvl.cli.paths import local
from qvl.errors import UsageError
from qvl.messages import Image
from qvl.processing.media import exists, is_url
from qvl.processing.naming import describe

_Record = tuple[str, Mapping[str, object]]

# Endings of pictures and clips that a folder does not stand for: whoever has such files wants to know that they are
# left out. Any other file, such as a text beside a picture, is nobody's concern.
_LEFT_OUT = UNREAD_ENDINGS | {
    *(".apng", ".pbm", ".pgm", ".pnm", ".orf", ".raf", ".rw2"),
    *(".3g2", ".asf", ".mpe", ".vob"),
}


def each_record(media: MediaOptions, quiet: bool = False) -> ListRecords:
    """A record for each medium, by the name it was given or found under; `--video` is one clip each, as ever.

    Says on stderr, unless `quiet`, how many files in folders are left out that look like pictures or clips.
    Raises UsageError for a folder or pattern without any, for a folder that cannot be read and for the same medium
    twice; MediaError.
    """
    if not media.media and not media.video:
        raise UsageError("--each asks about pictures and clips: name files, folders or patterns")
    if STDIN in (*media.media, *media.video):
        raise UsageError("--each takes files, folders, patterns and URLs, not standard input")
    left_out: list[str] = []
    records = [_record(source) for given in media.media for source in _sources(given, left_out)]
    if left_out:
        render.note(_others(left_out), quiet)
    stdin = StandardInput()
    for given in media.video:
        source = clip(given, stdin).source
        records.append((_id(given), {"videos": [list(source) if isinstance(source, tuple) else source]}))
    return ListRecords("--each", records)


def _record(source: str) -> _Record:
    key = "images" if isinstance(medium(source, StandardInput()), Image) else "videos"
    return _id(source), {key: [source]}


def _id(source: str) -> str:
    """The name as it was given; long data are told apart by their digest."""
    return f"{describe(source)} {digest(source)}" if source[:5].lower() == "data:" else source


def _sources(given: str, left_out: list[str]) -> Iterator[str]:
    """What one of MEDIA stands for, in an order that is the same everywhere. left_out: see `_in_folder`."""
    if given[:5].lower() == "data:" or is_url(given):
        yield given
        return
    path = local(given)
    if exists(path):
        yield from _in_folder(path, left_out) if path.is_dir() else (given,)
        return
    if not glob.has_magic(given):
        yield given  # its record says that there is no such file
        return
    found = _sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 -- takes no absolute patterns
    if not found:
        raise UsageError(f"--each: no file matches {given}")
    for name in found:
        if not Path(name).is_dir():
            yield name
        elif "**" not in given:  # that one goes into folders by itself
            yield from _in_folder(Path(name), left_out)


def _in_folder(folder: Path, left_out: list[str]) -> list[str]:
    """Pictures and clips in a folder and those below it, without what is hidden.

    left_out: gets the endings of files that look like some and are none of those taken.
    """
    names: list[str] = []
    others: list[str] = []
    for path in _files(folder):
        ending = path.suffix.lower()
        if ending in PICTURE_ENDINGS or ending in CLIP_ENDINGS:
            names.append(str(path))
        elif ending in _LEFT_OUT:
            others.append(ending)
    if not names:
        but = f"; {_others(others)}" if others else ""
        raise UsageError(f"--each: {folder} holds no pictures or clips{but}")
    left_out += others
    return _sorted(names)


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder and those below it, also by links, but for what is hidden. Raises UsageError."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = place.stat()
            within = above | {(status.st_dev, status.st_ino)}
            if len(within) == len(above):  # a link to a folder that it lies in
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        waiting.append((Path(entry.path), within))
                    else:
                        yield Path(entry.path)
        except OSError as error:
            raise UsageError(f"--each: {error.filename or place}: cannot be read ({error.strerror or error})") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one or a link to one. Raises OSError where that cannot be told."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise


def _sorted(names: list[str]) -> list[str]:
    """2 before 10; 1 and 01 by their letters."""
    return sorted(names, key=lambda name: (natural(name), name))


def _others(endings: list[str]) -> str:
    named = f"({', '.join(sorted(set(endings)))})"
    if len(endings) == 1:
        return f"1 file with another ending {named} is left out"
    return f"{len(endings)} files with other endings {named} are left out"
