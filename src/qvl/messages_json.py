"""Conversations as JSON, in the form that OpenAI's API and Qwen's own examples share, to and from `Message`.

Nothing is opened here: paths stay text and are relative to the working directory, wherever the JSON came from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.errors import UsageError, suggest
from qvl.messages import ROLES, Image, ImageSource, Message, Part, Text, Video, VideoSource

_TYPES = ("text", "image", "image_url", "video", "video_url")
_SECONDS = ("fps", "video_start", "video_end")  # numbers; every other option is a whole number
_MAY_BE_ZERO = ("video_start", "video_end")
_MOST = 1 << 53  # of any option: what a float64 counts exactly
_PLACE = "{}"


def as_messages(messages: Sequence[Message] | Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Records as they are, dictionaries read by `parse_messages`. Raises UsageError, also for a mix of both."""
    if not messages:
        raise UsageError("messages: there are no messages")
    if all(isinstance(message, Message) for message in messages):
        return tuple(message for message in messages if isinstance(message, Message))
    return parse_messages(list(messages), "messages")


def messages_from_text(text: str, where: str) -> tuple[Message, ...]:
    """Parse JSON text. `where` names its source in messages. Raises UsageError with line and column."""
    try:
        data = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise UsageError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # NaN and its like, or more digits than Python converts
        reason = str(error).partition(";")[0]
        raise UsageError(f"{where}: not valid JSON ({reason})") from None
    return parse_messages(data, where)


def parse_messages(data: object, where: str) -> tuple[Message, ...]:
    """Read a list of {"role", "content"}, or an object that has it under "messages".

    Raises UsageError that names the message and part (counted from 0) and, for a misspelt word, the nearest known one.
    """
    if isinstance(data, Mapping) and "messages" in data:
        data = data["messages"]
    if not isinstance(data, list):
        raise UsageError(f"{where}: a list of messages was expected, not {_kind(data)}")
    if not data:
        raise UsageError(f"{where}: there are no messages")
    return tuple(_message(item, f"{where}: message {index}") for index, item in enumerate(data))


def to_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The reverse of `parse_messages`. Raises UsageError for a picture that is not a path, URL or data URI."""
    return [{"role": message.role, "content": _content_to_json(message.parts)} for message in messages]


def interleave(prompt: str, media: Sequence[Image | Video]) -> tuple[Part, ...]:
    """Put `media` where `{}` stands in the prompt, in order; without any `{}` they come first.

    Only the two characters `{}` are a place, and only when there are media: JSON in a prompt stays as it is.
    Raises UsageError when the places are not as many as the media.
    """
    pieces = prompt.split(_PLACE)
    places = len(pieces) - 1
    if not media or not places:
        return (*media, *_text(prompt))
    if places != len(media):
        slots = f"{places} place{'s' if places > 1 else ''} {_PLACE}"
        given = "1 picture or clip" if len(media) == 1 else f"{len(media)} pictures and clips"
        raise UsageError(f"the prompt has {slots} for {given}")
    parts: list[Part] = [*_text(pieces[0])]
    for medium, piece in zip(media, pieces[1:], strict=True):
        parts += [medium, *_text(piece)]
    return tuple(parts)


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a number in JSON")


def _sound(text: str, where: str) -> str:
    """The text itself. JSON can write half a surrogate pair, which is no character and cannot be encoded."""
    lone = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if lone is not None:
        raise UsageError(f"{where}: the text has a lone surrogate (U+{ord(lone):04X}), so it is not valid Unicode")
    return text


def _text(text: str) -> tuple[Text, ...]:
    return (Text(text),) if text else ()


def _message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UsageError(f"{where}: an object with role and content was expected, not {_kind(item)}")
    _check_keys(item, ("role", "content"), where)
    role = item.get("role")
    if role not in ROLES:
        near = suggest(role, ROLES) if isinstance(role, str) else ""
        raise UsageError(f"{where}: unknown role {role!r}{near or '; expected ' + ', '.join(ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        return Message(role, (Text(_sound(content, where)),))
    if not isinstance(content, list):
        raise UsageError(f"{where}: content must be text or a list of parts, not {_kind(content)}")
    return Message(role, tuple(_part(part, f"{where}, part {index}") for index, part in enumerate(content)))


def _part(part: object, where: str) -> Part:
    if isinstance(part, str):
        return Text(_sound(part, where))
    if not isinstance(part, Mapping):
        raise UsageError(f"{where}: an object was expected, not {_kind(part)}")
    kind = _part_type(part, where)
    source = part.get(kind)
    if source is None:
        raise UsageError(f"{where}: a part of type {kind!r} needs the key {kind!r}")
    if kind == "text":
        _check_keys(part, ("type", "text"), where)
        if not isinstance(source, str):
            raise UsageError(f"{where}: text must be text, not {_kind(source)}")
        return Text(_sound(source, where))
    if kind.endswith("_url") and isinstance(source, Mapping):
        # OpenAI's "detail" asks for a resolution by words; pixels are asked for by name here.
        _check_keys(source, ("url", "detail"), f"{where}, {kind}")
        source = source.get("url")
    if kind.startswith("image"):
        return Image(_image_source(source, kind, where), **_options(part, kind, Image, where))
    return _video(part, kind, source, where)


def _part_type(part: Mapping[Any, Any], where: str) -> str:
    """The "type", or without one the key that says it, as in Qwen's examples."""
    if "type" not in part:
        found = [name for name in _TYPES if name in part]
        if len(found) != 1:
            raise UsageError(f"{where}: a type was expected, one of {', '.join(_TYPES)}")
        return found[0]
    kind = part["type"]
    if kind not in _TYPES:
        near = suggest(kind, _TYPES) if isinstance(kind, str) else ""
        raise UsageError(f"{where}: unknown type {kind!r}{near or '; expected one of ' + ', '.join(_TYPES)}")
    return str(kind)


def _image_source(source: Any, kind: str, where: str) -> ImageSource:
    """Text, which is all that JSON has; or the thing itself, which Qwen's examples in Python give."""
    # A PIL image and an array both have the interface of arrays; neither need be imported to know it.
    itself = isinstance(source, (Path, bytes)) or hasattr(source, "__array_interface__")
    if not itself and (not isinstance(source, str) or not source):
        raise UsageError(f"{where}: {kind} must be a path, a URL or a data: URI, not {_kind(source)}")
    found: ImageSource = source
    return found


def _video(part: Mapping[Any, Any], kind: str, source: Any, where: str) -> Video:
    frames: VideoSource
    if isinstance(source, list) and source:
        frames = tuple(_image_source(frame, f"{kind} frame {index}", where) for index, frame in enumerate(source))
    elif isinstance(source, (str, Path, bytes)) and source:
        frames = source
    else:
        raise UsageError(f"{where}: {kind} must be a path, a URL, a data: URI or a list of frames, not {_kind(source)}")
    options = _options(part, kind, Video, where)
    if options.keys() >= {"fps", "nframes"}:
        raise UsageError(f"{where}: fps and nframes exclude each other")
    return Video(frames, **options)


def _options(part: Mapping[Any, Any], kind: str, cls: type[Image] | type[Video], where: str) -> dict[str, Any]:
    """The per-part options that `cls` has; null is the same as leaving one out."""
    names = [field.name for field in dataclasses.fields(cls) if field.name != "source"]
    _check_keys(part, ("type", kind, *names), where)
    given = {name: part[name] for name in names if part.get(name) is not None}
    for name, value in given.items():
        types = (int, float) if name in _SECONDS else (int,)
        sensible = isinstance(value, types) and value <= _MOST and (value > 0 or (value == 0 and name in _MAY_BE_ZERO))
        if isinstance(value, bool) or not sensible:
            expected = "a number" if name in _SECONDS else "a whole number"
            bound = f"{'of at least 0' if name in _MAY_BE_ZERO else 'above 0'}, and below 2^53"
            raise UsageError(f"{where}: {name} is {_shown(value)}; expected {expected} {bound}")
    return given


def _shown(value: object) -> str:
    """Python refuses to write out a number of very many digits."""
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > _MOST else repr(value)


def _check_keys(item: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in item:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}{suggest(str(key), known)}")


def _kind(value: object) -> str:
    names = {type(None): "nothing", bool: "true or false", str: "text", dict: "an object", list: "a list"}
    if isinstance(value, (str, list)) and not value:
        return "nothing"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), f"a {type(value).__name__}")


def _content_to_json(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [_part_to_json(part) for part in parts]


def _part_to_json(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    kind = "image" if isinstance(part, Image) else "video"
    options = {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if field.name != "source" and getattr(part, field.name) is not None
    }
    return {"type": kind, kind: _source_to_json(part.source), **options}


def _source_to_json(source: ImageSource | VideoSource) -> str | list[str]:
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, (list, tuple)) and all(isinstance(frame, (str, Path)) for frame in source):
        return [str(frame) for frame in source]
    raise UsageError("only pictures and clips given by path, URL or data: URI can be written as JSON")
