"""Where the media of a sample stand: tags in its text, places among its parts, or before the first words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qvl.errors import UsageError

Json = dict[str, Any]
_TAGS = {"<image>": "image", "<video>": "video"}
_TAG = re.compile("(<image>|<video>)")


class Places:
    """The media that a record names beside its text, as OpenAI parts in order.

    `images` or `image`, `videos` or `video`: one or a list of a path, URL or data URI, or of objects that have it under
    the key image/video, path, url or bytes (base64) with the options a part may have. A clip may be a list of frames.
    Raises UsageError.
    """

    def __init__(self, record: Mapping[Any, Any], where: str) -> None:
        self.where = where
        self.media = {kind: self._named(record, kind) for kind in _TAGS.values()}
        self.tags_in_parts = any(self.media.values())

    def fill(self, turns: Sequence[Json], *, tags_needed: bool) -> list[Json]:
        """The turns as {"role", "content"} with every medium in its place.

        tags_needed: media without a single tag are an error; otherwise they come before the user's first words.
        Raises UsageError when places and media are not equally many.
        """
        split = [self._split(turn.get("content")) for turn in turns]
        places = [_place(item) for content in split if isinstance(content, list) for item in content]
        leading: list[Json] = []
        for kind, media in self.media.items():
            count = places.count(kind)
            if media and not count and not tags_needed:
                leading += media
            elif count != len(media):
                plural = "" if len(media) == 1 else "s"
                raise UsageError(f"{self.where}: {count} <{kind}> in the text, but {len(media)} {kind}{plural}")
        queues = {kind: iter(media) for kind, media in self.media.items()}
        contents = [
            [next(queues[place]) | _options(item) if (place := _place(item)) else item for item in content]
            if isinstance(content, list)
            else content
            for content in split
        ]
        if leading:
            first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
            if first is None:
                raise UsageError(f"{self.where}: there are media, but no message of the user to put them in")
            old = contents[first]
            contents[first] = [*leading, *(old if isinstance(old, list) else [{"type": "text", "text": old}])]
        return [{"role": turn["role"], "content": content} for turn, content in zip(turns, contents, strict=True)]

    def _split(self, content: object) -> object:
        """Content with tags as a list of parts and places; a place is a part of a type without a source."""
        if isinstance(content, str):
            return _pieces(content) if _TAG.search(content) else content
        if not isinstance(content, list):
            return content
        parts: list[object] = []
        for part in content:
            if isinstance(part, Mapping):  # tables fill the keys that a part lacks with null
                part = {key: value for key, value in part.items() if value is not None}
            text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
            parts += _pieces(text) if isinstance(text, str) and self.tags_in_parts else [part]
        return parts

    def _named(self, record: Mapping[Any, Any], kind: str) -> list[Json]:
        given = [(key, record[key]) for key in (f"{kind}s", kind) if record.get(key)]
        if len(given) > 1:
            raise UsageError(f"{self.where}: {kind} and {kind}s both name media; one of them is enough")
        found = []
        for key, value in given:
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                found.append(_medium(item, kind, f"{self.where}: {key} {index}"))
        return found


def kind_of(value: object) -> str:
    """A word for a JSON value in a message."""
    names = {type(None): "nothing", bool: "true or false", str: "text", dict: "an object", list: "a list"}
    return "an empty list" if value == [] else names.get(type(value), "a number")


def _medium(item: object, kind: str, where: str) -> Json:
    if not isinstance(item, Mapping):
        source, options = item, {}
    else:
        keys = [key for key in (kind, f"{kind}_url", "path", "url", "bytes") if item.get(key)]
        if not keys:
            raise UsageError(f"{where}: the key {kind!r}, 'path', 'url' or 'bytes' is needed")
        # Data sets that were written by Hugging Face's library have both, and the bytes are then the picture itself.
        key = "bytes" if "bytes" in keys else keys[0]
        source = item[key]
        if key == "bytes":
            if not isinstance(source, str):
                raise UsageError(f"{where}: bytes have to be base64 text, not {kind_of(source)}")
            source = f"data:;base64,{source}"
        options = {
            name: value for name, value in item.items() if name not in (*keys, "type", "path", "bytes", "url", kind)
        }
    frames = kind == "video" and isinstance(source, list)
    if not source or not (isinstance(source, str) or frames):
        raise UsageError(f"{where}: a path, a URL or a data: URI was expected, not {kind_of(source)}")
    return {"type": kind, kind: source, **options}


def _pieces(text: str) -> list[object]:
    return [
        {"type": _TAGS[piece]} if piece in _TAGS else {"type": "text", "text": piece}
        for piece in _TAG.split(text)
        if piece
    ]


def _place(item: object) -> str | None:
    """The kind of medium that belongs here, when an item is a place and not a part that has its own."""
    if isinstance(item, Mapping) and (kind := item.get("type")) in _TAGS.values():
        return None if item.get(kind) else str(kind)
    return None


def _options(item: object) -> Json:
    """What a place among OpenAI parts says beside its type."""
    assert isinstance(item, Mapping)
    return {key: value for key, value in item.items() if value is not None and key != "type"}
