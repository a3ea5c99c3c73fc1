"""Pictures and clips in what somebody types: where a line names them, and how they are read and kept.

A picture is read when it is attached and kept as it was then: a screenshot that is overwritten for the next question
must not change the last one, and a link is not downloaded at every turn.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from qvl.cli.media import UNREAD_ENDINGS, check_source, clip, kind_of
from qvl.cli.paths import local
from qvl.errors import MediaError, UsageError
from qvl.messages import Image, Message, Part, Text, Video
from qvl.processing.media import CLIP_BYTES, PICTURE_BYTES, Named, describe, exists, is_url, local_path, read_source

# A quoted text, or a word in which a backslash takes the next character as it is.
_WORD = re.compile(
    r"""(?<!\S)(?:(?P<quote>["'])(?P<quoted>[^\n]+?)(?P=quote)(?=[\s.,;:!?)\]]|$)|(?P<bare>(?:\\.|\S)+))"""
)
_ESCAPED = re.compile(r"\\(.)")
_OPENING, _CLOSING = "([<\"'", ".,;:!?)]>\"'"
_MARK = re.compile(r"\[#(\d+)(?: [^\]\n]*)?\]")


@dataclasses.dataclass(frozen=True)
class Reading:
    """A typed line: its parts in order, and the words in it that look like media and are no file."""

    parts: tuple[Part, ...]
    not_found: tuple[str, ...] = ()

    @property
    def media(self) -> tuple[Image | Video, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Text))


def read_line(text: str, known: Sequence[Image | Video] = ()) -> Reading:
    """Take the pictures and clips out of a typed text; each part stands where the text named it.

    Attached are words and quoted texts that name a file, and URLs, with the ending of a picture or clip; a whole line
    that is one path may have spaces in it. known: what marks such as `[#1 cat.png]` stand for, see `as_text`.
    Raises MediaError for a path with a folder in it that is no file, and for a medium that cannot be read.
    """
    pieces: list[str | Part] = []
    missing: list[str] = []
    end = 0
    for mark in _MARK.finditer(text) if known else ():
        if 1 <= int(mark[1]) <= len(known):
            _scan(text[end : mark.start()], pieces, missing)
            pieces.append(known[int(mark[1]) - 1])
            end = mark.end()
    _scan(text[end:], pieces, missing)
    return Reading(_joined(pieces), tuple(missing))


def as_text(parts: Sequence[Part]) -> tuple[str, tuple[Image | Video, ...]]:
    """A question to be edited: its text with a mark for each picture or clip, and what the marks stand for."""
    media: list[Image | Video] = []
    text = ""
    for index, part in enumerate(parts):
        if isinstance(part, Text):
            text += part.text
            continue
        media.append(part)
        text += f"[#{len(media)} {short_name(part).replace(']', ')')}]"
        if len(media) == index + 1 < len(parts):  # before the words; `read_line` takes the space away again
            text += " "
    return text, tuple(media)


def words(text: str) -> list[str]:
    """The arguments of a command: separated by spaces, quoted or escaped where they hold some."""
    whole = text.strip()
    if whole and " " in whole and exists(local(whole)):
        return [whole]
    found = []
    for word in _WORD.finditer(whole):
        bare = word["bare"]
        found.append(word["quoted"] if bare is None else next(_spellings(bare)))
    return found


def split(text: str) -> list[str]:
    """Words in the manner of a shell. Raises UsageError for a quotation mark that is not closed."""
    try:
        return shlex.split(text)
    except ValueError:
        raise UsageError("a quotation mark is not closed") from None


def picture(source: str) -> Image:
    """A picture by path or URL, read. Raises MediaError and UsageError."""
    part = Image(_not_stdin(source))
    check_source(Image(str(_local(source)) if _is_local(source) else source))
    return _kept_picture(part)


def of(source: str) -> Image | Video:
    """A medium of the command line, a picture unless its name says that it is a clip."""
    return film(source) if kind_of(source) == "video" else picture(source)


def film(source: str) -> Video:
    """A clip by path, folder, pattern or URL; files stay on disk. Raises MediaError and UsageError."""
    from qvl.cli.media import StandardInput

    name = _not_stdin(source)
    return _kept_clip(clip(str(_local(name)) if name.startswith("file:") else name, StandardInput()))


def kept(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation from a file, with its pictures read as `read_line` does. Raises MediaError and UsageError."""

    def keep(part: Part) -> Part:
        if isinstance(part, Text):
            return part
        check_source(part)
        return _kept_picture(part) if isinstance(part, Image) else _kept_clip(part)

    return tuple(dataclasses.replace(message, parts=tuple(map(keep, message.parts))) for message in messages)


def from_clipboard(data: bytes, number: int) -> Image:
    """The picture of a clipboard, as encoded bytes."""
    return Image(Named(data, "", f"clipboard-{number}.png"))


def short_name(part: Image | Video) -> str:
    """What a person calls it: the name of the file."""
    source = part.source
    if isinstance(source, Named):
        source = source.name
    if isinstance(source, tuple):
        return f"{len(source)} frames"
    name = describe(source)
    if name[:5].lower() == "data:":
        return f"embedded {re.split('[;,]', name[5:])[0] or 'medium'}"
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def _scan(text: str, pieces: list[str | Part], missing: list[str]) -> None:
    """Append a text to `pieces`, cut where it names media."""
    whole = text.strip()
    if " " in whole and kind_of(whole) and _is_file(whole):
        pieces.append(of(whole))
        return
    end = 0
    for word in _WORD.finditer(text):
        found = _find(word, missing)
        if found is not None:
            start, stop, source = found
            pieces += [text[end:start], of(source)]
            end = stop
    pieces.append(text[end:])


def _find(word: re.Match[str], missing: list[str]) -> tuple[int, int, str] | None:
    """Where in the line a word names a picture or clip, and which; None when it does not."""
    if word["quoted"] is not None:
        source = word["quoted"]
        return (word.start(), word.end(), source) if _names_media(source, missing) else None
    bare = word["bare"]
    left = len(bare) - len(bare.lstrip(_OPENING))
    core = bare[left:]
    cut = core.rstrip(_CLOSING)
    for text in (core, cut) if cut != core else (core,):
        start = word.start() + left
        spellings = list(_spellings(text))
        for source in spellings:
            if kind_of(source) and (not _is_local(source) or _is_file(source)):
                return start, start + len(text), source
    if cut:
        _names_media(next(_spellings(cut)), missing)  # nothing was there: says so where that helps
    return None


def _spellings(word: str) -> Iterator[str]:
    """A word as it is when that is a file, as on Windows, else with its escapes taken away."""
    plain = _ESCAPED.sub(r"\1", word)
    if plain != word and _is_local(word) and _is_file(word):
        yield word
    yield plain


def _names_media(source: str, missing: list[str]) -> bool:
    """Whether a text names a picture or clip. A path that leads nowhere is an error, a bare name only remarkable."""
    if not kind_of(source):
        ending = Path(source).suffix.lower()
        if ending in UNREAD_ENDINGS and _is_local(source) and _is_file(source):
            raise MediaError(f"{describe(source)}: {ending} files are not read; convert it to JPEG or PNG first")
        return False
    if not _is_local(source) or _is_file(source):
        return True
    if source.startswith(("file:", "~")) or "/" in source or os.sep in source:
        raise MediaError(f"{describe(source)}: no such file")
    missing.append(source)
    return False


def _is_local(source: str) -> bool:
    return source[:5].lower() != "data:" and not is_url(source)


def _local(source: str) -> Path:
    return local_path(source)


def _is_file(source: str) -> bool:
    try:
        path = _local(source)
        return exists(path) and path.is_file()
    except MediaError:  # another scheme
        return False


def _not_stdin(source: str) -> str:
    if source == "-":
        raise UsageError("standard input is the conversation here; give a file or a URL")
    return source


def _kept_picture(part: Image) -> Image:
    source = part.source
    if not isinstance(source, (str, Path)) or str(source)[:5].lower() == "data:":
        return part
    reference = str(_local(str(source)).absolute()) if _is_local(str(source)) else str(source)
    return dataclasses.replace(part, source=Named(read_source(source, max_bytes=PICTURE_BYTES), reference))


def _kept_clip(part: Video) -> Video:
    source = part.source
    if isinstance(source, (list, tuple)):
        return dataclasses.replace(part, source=tuple(_absolute(frame) for frame in source))
    if not isinstance(source, (str, Path)) or str(source)[:5].lower() == "data:":
        return part
    if is_url(str(source)):
        data = Named(read_source(source, max_bytes=CLIP_BYTES), str(source))
        return dataclasses.replace(part, source=data)
    return dataclasses.replace(part, source=_absolute(source))


def _absolute(source: object) -> str:
    text = str(source)
    return str(_local(text).absolute()) if _is_local(text) else text


def _joined(pieces: Sequence[str | Part]) -> tuple[Part, ...]:
    """Neighbouring text in one; no empty text, and no spaces at the ends or next to media at the ends."""
    parts: list[Part] = []
    for piece in pieces:
        if not isinstance(piece, str):
            parts.append(piece)
        elif piece.strip():
            parts.append(Text(piece))
    for index, part in enumerate(parts):
        if isinstance(part, Text):
            text = part.text
            if all(not isinstance(before, Text) for before in parts[:index]):
                text = text.lstrip()
            if all(not isinstance(after, Text) for after in parts[index + 1 :]):
                text = text.rstrip()
            parts[index] = Text(text)
    return tuple(parts)
