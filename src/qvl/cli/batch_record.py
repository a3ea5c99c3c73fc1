"""One record of a batch to a conversation and its own sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qvl.cli.media import with_content, with_limits
from qvl.cli.options import MediaOptions
from qvl.errors import UsageError, suggest
from qvl.messages import Image, Message, Video, rooted
from qvl.messages_json import interleave, parse_messages
from qvl.runtime.records import Sampling
from qvl.schema import revise

_MEDIA = {"images": "image", "image": "image", "videos": "video", "video": "video"}
_SAMPLING = tuple(entry.name for entry in fields(Sampling))
KEYS = ("id", "messages", "prompt", *_MEDIA, "system", "sampling", *_SAMPLING)


@dataclass(frozen=True)
class Question:
    """What is to be answered. sampling: what the record itself asks for, under the names of `Sampling`."""

    messages: tuple[Message, ...]
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What holds for records that do not say otherwise. root: see `Records`."""

    media: MediaOptions = field(default_factory=MediaOptions)
    prompt: str | None = None
    system: str | None = None
    root: Path | None = None


def read_record(data: Mapping[str, object], defaults: Defaults) -> Question:
    """Read {"messages"} or {"prompt", "images", "videos"}, either with "system" and the fields of `Sampling`.

    Raises UsageError for what is missing or wrong; for an unknown key it names the nearest.
    """
    given = {name: value for name, value in data.items() if value is not None}
    for name in given:
        if name not in KEYS:
            raise UsageError(f"unknown key {name!r}{suggest(name, KEYS)}")
    sampling = _sampling(given)
    if "messages" in given:
        rival = next((name for name in ("prompt", *_MEDIA) if name in given), None)
        if rival is not None:
            raise UsageError(f"messages hold the whole conversation: leave out {rival!r}")
        messages = with_content(parse_messages(given["messages"], "messages"), "messages")
    else:
        messages = (_turn(given, defaults),)
    messages = _with_system(messages, given, defaults)
    if defaults.root is not None:
        root = defaults.root
        messages = tuple(replace(turn, parts=tuple(rooted(part, root) for part in turn.parts)) for turn in messages)
    return Question(with_limits(messages, defaults.media), sampling)


def _sampling(given: Mapping[str, object]) -> dict[str, Any]:
    """The record's own settings, of the right types; whether their values make sense is the engine's to say."""
    own = {name: given[name] for name in _SAMPLING if name in given}
    nested = given.get("sampling", {})
    if not isinstance(nested, Mapping):
        raise UsageError("sampling has to be an object")
    for name in nested:
        if name not in _SAMPLING:
            raise UsageError(f"sampling: unknown key {name!r}{suggest(str(name), _SAMPLING)}")
        if name in own:
            raise UsageError(f"{name} is given twice, beside sampling and in it")
    own |= {name: value for name, value in nested.items() if value is not None}
    if not own:
        return {}
    checked = revise(Sampling(), own, "sampling")
    return {name: getattr(checked, name) for name in own}


def _turn(given: Mapping[str, object], defaults: Defaults) -> Message:
    """The user's turn out of a prompt and its media."""
    prompt = given.get("prompt", defaults.prompt)
    if prompt is None:
        raise UsageError("there is no question: messages or a prompt is needed")
    if not isinstance(prompt, str):
        raise UsageError("prompt has to be text")
    media = [part for name, kind in _MEDIA.items() if name in given for part in _media(given[name], kind, name)]
    parts = []
    for text in interleave(prompt, media):
        # Read as JSON is, for its checks of the text.
        parts.append(text if isinstance(text, (Image, Video)) else _parts([text.text], "prompt")[0])
    return with_content((Message("user", tuple(parts)),), "prompt")[0]


def _media(value: object, kind: str, name: str) -> list[Image | Video]:
    """A source, an object such as {"image": source, "max_pixels": n}, or, in the plural, a list of those."""
    sources = value if isinstance(value, list) and name.endswith("s") else [value]
    # What is no object is the source itself: a list under "video" is frames.
    parts = _parts([item if isinstance(item, Mapping) else {"type": kind, kind: item} for item in sources], name)
    found = [part for part in parts if isinstance(part, (Image, Video))]
    if len(found) != len(parts):
        raise UsageError(f"{name} holds what is neither a picture nor a clip")
    return found


def _parts(content: Sequence[object], where: str) -> Sequence[Any]:
    return parse_messages([{"role": "user", "content": list(content)}], where)[0].parts


def _with_system(messages: tuple[Message, ...], given: Mapping[str, object], defaults: Defaults) -> tuple[Message, ...]:
    has_one = any(message.role == "system" for message in messages)
    if "system" in given and has_one:
        raise UsageError("system is given twice, beside messages and in them")
    system = given.get("system", defaults.system)
    if system is None or has_one:
        return messages
    if not isinstance(system, str):
        raise UsageError("system has to be text")
    return (Message("system", tuple(_parts([system], "system"))), *messages)
