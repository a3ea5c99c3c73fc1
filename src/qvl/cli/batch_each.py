"""One question about many pictures and clips: `--each` turns files, folders and patterns into records."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from qvl.cli.batch_input import ListRecords, digest
from qvl.cli.media import CLIP_ENDINGS, PICTURE_ENDINGS, STDIN, StandardInput, clip, medium, natural
from qvl.cli.options import MediaOptions
from qvl.cli.paths import local
from qvl.errors import UsageError
from qvl.messages import Image
from qvl.processing.media import exists, is_url
from qvl.processing.naming import describe

_Record = tuple[str, Mapping[str, object]]


def each_record(media: MediaOptions) -> ListRecords:
    """A record for each medium, by the name it was given or found under; `--video` is one clip each, as ever.

    Raises UsageError for a folder or pattern without any and for the same one twice; MediaError.
    """
    if not media.media and not media.video:
        raise UsageError("--each asks about pictures and clips: name files, folders or patterns")
    if STDIN in (*media.media, *media.video):
        raise UsageError("--each takes files, folders, patterns and URLs, not standard input")
    records = [_record(source) for given in media.media for source in _sources(given)]
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


def _sources(given: str) -> Iterator[str]:
    """What one of MEDIA stands for, in an order that is the same everywhere."""
    if given[:5].lower() == "data:" or is_url(given):
        yield given
        return
    path = local(given)
    if exists(path):
        yield from _in_folder(path) if path.is_dir() else (given,)
        return
    if not glob.has_magic(given):
        yield given  # its record says that there is no such file
        return
    found = sorted(glob.glob(str(path), recursive=True), key=natural)  # noqa: PTH207 -- takes no absolute patterns
    if not found:
        raise UsageError(f"--each: no file matches {given}")
    for name in found:
        if not Path(name).is_dir():
            yield name
        elif "**" not in given:  # that one goes into folders by itself
            yield from _in_folder(Path(name))


def _in_folder(folder: Path) -> list[str]:
    """Pictures and clips in a folder and those below it, without what is hidden."""
    names: list[str] = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        endings = PICTURE_ENDINGS | CLIP_ENDINGS
        names += [
            str(Path(place) / name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in endings
        ]
    if not names:
        raise UsageError(f"--each: {folder} holds no pictures or clips")
    return sorted(names, key=natural)
