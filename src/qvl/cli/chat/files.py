"""A conversation as a file: JSON in the form of `qvl infer --messages`, or Markdown to read."""

from __future__ import annotations

import base64
import dataclasses
import io
import mimetypes
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from qvl.cli.chat.attachments import short_name
from qvl.cli.chat.dialogue import Dialogue
from qvl.errors import MediaError, QvlError, UsageError
from qvl.messages import Image, Message, Part, Text, Video
from qvl.messages_json import messages_from_text, to_json
from qvl.processing.frames import frame_files
from qvl.processing.media import Named, exists, is_url, local_path, read_source
from qvl.processing.template import GROUNDING_MARKS

_MARKS = re.compile("|".join(map(re.escape, GROUNDING_MARKS)))


def target(name: str, own: Collection[str]) -> Path:
    """Where to write a conversation. Raises UsageError for a file that is neither a conversation nor among `own`."""
    path = _writable(name, "/save")
    if path.exists() and str(path.resolve()) not in own:
        try:
            read(path)
        except UsageError:
            raise UsageError(f"/save {path}: is there and is no conversation; take another name") from None
    return path


def page(name: str, own: Collection[str]) -> Path:
    """Where to write Markdown. Raises UsageError for another ending, and for a file that is there and not ours."""
    path = _writable(name, "/export")
    if path.suffix.lower() not in (".md", ".markdown"):
        raise UsageError(f"/export {path}: must end in .md")
    if path.exists() and str(path.resolve()) not in own:
        raise UsageError(f"/export {path}: is already there; take another name")
    return path


def source(name: str) -> Path:
    """The file of a conversation. Raises UsageError when there is none."""
    path = _path(name)
    if not exists(path) or path.is_dir():
        raise UsageError(f"{path}: no such file")
    return path


def read(path: Path) -> tuple[Message, ...]:
    """The messages of a file. Raises UsageError."""
    try:
        return messages_from_text(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None


def save(messages: Sequence[Message], path: Path, *, embed: bool) -> list[str]:
    """Write messages as JSON, whole or not at all. Returns the names of media that had to be embedded all the same.

    Media are named by absolute path or URL; embedded where asked for, where they have neither, and where the file is
    no longer what was attached. Raises QvlError.
    """
    import json

    forced: list[str] = []

    def written(part: Part) -> Part:
        if isinstance(part, Text):
            return part
        reference = None if embed else _reference(part)
        if reference is not None:
            return _with_source(part, reference)
        if not embed and isinstance(part.source, Named) and part.source.reference:
            forced.append(short_name(part))
        return embedded(part)

    plain = [dataclasses.replace(message, parts=tuple(map(written, message.parts))) for message in messages]
    _write(path, json.dumps(to_json(plain), ensure_ascii=False, indent=1) + "\n", "/save")
    return forced


def embedded(part: Image | Video) -> Image | Video:
    """The part with its content as a data: URI, or a list of them. Raises MediaError when it cannot be read."""
    source = part.source
    if isinstance(source, str) and source[:5].lower() == "data:":
        return part
    if isinstance(part, Image):
        return dataclasses.replace(part, source=_picture_uri(source))
    frames = source if isinstance(source, tuple) else frame_files(source) if isinstance(source, str) else ()
    if frames:
        return dataclasses.replace(part, source=tuple(_picture_uri(frame) for frame in frames))
    if not isinstance(source, (str, bytes)):
        raise MediaError(f"{short_name(part)}: cannot be embedded")
    kind = mimetypes.guess_type(source.name if isinstance(source, Named) else str(source))[0] or "video/mp4"
    return dataclasses.replace(part, source=_uri(read_source(source), kind))


def _with_source(part: Image | Video, source: str | tuple[str, ...]) -> Image | Video:
    if isinstance(part, Video):
        return dataclasses.replace(part, source=source)
    assert isinstance(source, str)
    return dataclasses.replace(part, source=source)


def export(dialogue: Dialogue, path: Path, model: str, own: Collection[str]) -> list[Path]:
    """Write a conversation as Markdown; pictures are links, and those without a file are written beside it.

    own: files that may be written over. Returns what was written. Raises UsageError for a picture's name that is taken.
    """
    blocks = [f"# {path.stem}", f"Model: {model}"]
    if dialogue.system is not None:
        blocks += ["## System", *_blocks(dialogue.system.parts, path, [])]
    beside: list[Image] = []
    for turn in dialogue.turns:
        for message in turn.messages:
            blocks += [f"## {'Answer' if message.role == 'assistant' else message.role.capitalize()}"]
            blocks += _blocks(message.parts, path, beside)
    pictures = [_beside(path, number) for number in range(1, len(beside) + 1)]
    for place in pictures:
        if place.exists() and str(place.resolve()) not in own:
            raise UsageError(f"/export {path}: {place.name}, for a picture of it, is already there; take another name")
    for place, picture in zip(pictures, beside, strict=True):
        _write_bytes(place, read_source(_bytes_of(picture)), "/export")
    _write(path, "\n\n".join(blocks) + "\n", "/export")
    return [path, *pictures]


def _blocks(parts: Iterable[Part], path: Path, beside: list[Image]) -> list[str]:
    blocks = []
    for part in parts:
        if isinstance(part, Text):
            blocks.append(_MARKS.sub("", part.text).strip())
            continue
        reference = _reference(part)
        if isinstance(reference, tuple):
            blocks += [f"![{_plain(short_name(part))}]({_link(frame, path)})" for frame in reference]
            continue
        if reference is None and isinstance(part, Image):
            beside.append(part)
            reference = str(_beside(path, len(beside)).absolute())
        link = _link(reference or "", path)
        shown = f"[{_plain(short_name(part))}]({link})" if link else _plain(short_name(part))
        blocks.append(f"!{shown}" if link and isinstance(part, Image) else shown)
    return [block for block in blocks if block]


def _beside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.png")


def _bytes_of(picture: Image) -> bytes:
    """A picture as PNG, whatever it came as."""
    from qvl.processing.image import load_image

    buffer = io.BytesIO()
    load_image(picture.source).save(buffer, "PNG")
    return buffer.getvalue()


def _reference(part: Image | Video) -> str | tuple[str, ...] | None:
    """The path, URL or frames by which a medium can be had as it was attached; None when it cannot."""
    source = part.source
    if isinstance(source, Named):
        if not source.reference or is_url(source.reference):
            return source.reference or None
        try:
            same = Path(source.reference).read_bytes() == source
        except OSError:
            same = False
        return source.reference if same else None
    if isinstance(source, tuple):
        return tuple(map(str, source))
    if isinstance(source, (str, Path)) and str(source)[:5].lower() != "data:":
        return str(source)
    return None


def _link(reference: str, path: Path) -> str:
    """A link from a page to a file or URL, relative where that is possible."""
    if not reference or is_url(reference):
        return reference
    try:
        relative = os.path.relpath(reference, path.absolute().parent)
    except ValueError:  # another drive
        relative = reference
    return quote(relative.replace(os.sep, "/"), safe="/.-_~:")


def _plain(name: str) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", name)


def _picture_uri(source: object) -> str:
    if isinstance(source, str) and source[:5].lower() == "data:":
        return source
    if not isinstance(source, (str, Path, bytes)):
        raise MediaError("a picture without a file cannot be embedded")
    from PIL import Image as PILImage

    data = read_source(source)
    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            kind = PILImage.MIME.get(picture.format or "", "image/png")
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        kind = "image/png"  # whoever reads it says what is wrong
    return _uri(data, kind)


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _path(name: str) -> Path:
    return local_path(name)


def _writable(name: str, command: str) -> Path:
    path = _path(name)
    if path.is_dir():
        raise UsageError(f"{command} {path}: is a folder")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{command} {path}: there is no folder {path.parent}")
    return path


def _write(path: Path, text: str, command: str) -> None:
    _write_bytes(path, text.encode("utf-8"), command)


def _write_bytes(path: Path, data: bytes, command: str) -> None:
    """Write a file beside its place and move it there, so that a full disk leaves the old one."""
    place = path.resolve()
    try:
        number, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        part = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
            mode = place.stat().st_mode if place.exists() else 0o666 & ~_umask()
            part.chmod(mode)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise QvlError(f"{command} {path}: cannot be written ({error.strerror or error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
