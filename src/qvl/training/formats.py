"""A training sample in any of the forms that are in use, to messages.

Every form is first written as OpenAI parts, with the media where they stand in the text, and then read as inference
reads its messages. What a form leaves open (where pictures go without a tag, which replies count) is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.errors import QvlError, UsageError, suggest
from qvl.messages import Message, Text, rooted
from qvl.messages_json import parse_messages
from qvl.training.placing import Places, kind_of

FORMATS = (
    "messages with images or videos (<image> and <video> in the text)",
    "messages of OpenAI parts",
    "LLaVA conversations with image or video",
    "query and response (swift)",
)
# Columns that would change what is learnt, and that nothing here can honour.
_UNSUPPORTED = ("audios", "audio", "tools", "objects")
_UNSUPPORTED_OF_TURN = ("loss_scale", "tool_calls")
_LOSS = ("loss", "weight")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Turn = dict[str, Any]


class DataError(QvlError):
    """A data set, or a sample of it, cannot be used: file, index and reason in one line."""


@dataclass(frozen=True)
class Sample:
    """One conversation to learn. file: as the user named it; index: its place there, counted from 0."""

    messages: tuple[Message, ...]
    file: str
    index: int

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"{self.file}: sample {self.index}"


def parse_sample(record: object, root: Path, where: str) -> tuple[Message, ...]:
    """Read one record of a data set; its form is recognised by its keys, and keys without a meaning here are left out.

    root: folder that relative paths of media start from. where: what errors begin with.
    `<image>` and `<video>` stand for the media in order and have to be as many; a record (other than LLaVA's) without
    any tag shows its media before the first words of the user. Text around a tag stays as it is.
    Raises DataError: a form that is not known, a wrong number of tags, an unknown role, nothing to learn.
    """
    try:
        messages = _read(record, where)
    except UsageError as error:
        raise DataError(str(error)) from None
    messages = tuple(
        replace(message, parts=tuple(rooted(part, root) for part in message.parts)) for message in messages
    )
    _check(messages, where)
    return messages


def _read(record: object, where: str) -> tuple[Message, ...]:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: an object was expected, not {kind_of(record)}")
    for key in _UNSUPPORTED:
        if record.get(key):
            raise DataError(f"{where}: {key!r} is not supported")
    tagged = False
    if "messages" in record:
        turns = _turns(record["messages"], "messages", where)
    elif "conversations" in record:
        turns, tagged = _turns(record["conversations"], "conversations", where), True
    elif "query" in record or "response" in record:
        turns = _query_turns(record, where)
    else:
        keys = ", ".join(map(str, record)) or "none"
        raise DataError(f"{where}: a form that is not known (keys: {keys}); known are {'; '.join(FORMATS)}")
    if record.get("system") and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": record["system"], "loss": None})
    losses = [_loss(turn.pop("loss"), turn["role"], f"{where}: message {index}") for index, turn in enumerate(turns)]
    places = Places(record, where)
    messages = parse_messages(places.fill(turns, tags_needed=tagged), where)
    return tuple(replace(message, loss=loss) for message, loss in zip(messages, losses, strict=True))


def _turns(given: object, key: str, where: str) -> list[Turn]:
    """Turns as {"role", "content", "loss"}, from those or from LLaVA's {"from", "value"}."""
    if not isinstance(given, list) or not given:
        raise DataError(f"{where}: {key} has to be a list of turns, not {kind_of(given)}")
    turns = []
    for index, turn in enumerate(given):
        at = f"{where}: message {index}"
        if not isinstance(turn, Mapping):
            raise DataError(f"{at}: an object was expected, not {kind_of(turn)}")
        for name in turn:
            if (name in _UNSUPPORTED_OF_TURN and turn[name]) or (name not in _LOSS and suggest(str(name), _LOSS)):
                raise DataError(f"{at}: {name!r} is not supported{suggest(str(name), _LOSS)}")
        role, content = ("from", "value") if "from" in turn else ("role", "content")
        if role not in turn or content not in turn:
            raise DataError(f"{at}: {role} and {content} are needed")
        speaker = turn[role]
        if role == "from":
            if not isinstance(speaker, str) or speaker not in _SPEAKERS:
                raise DataError(f"{at}: unknown role {speaker!r}; expected human, gpt or system")
            speaker = _SPEAKERS[speaker]
        turns.append({"role": speaker, "content": turn[content], "loss": turn.get("loss", turn.get("weight"))})
    return turns


def _query_turns(record: Mapping[Any, Any], where: str) -> list[Turn]:
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f"{where}: history has to be a list of [query, response]")
    if not isinstance(record.get("response"), str):
        raise DataError(f"{where}: there is no response to learn")
    pairs = [*history, [record.get("query") or "", record["response"]]]
    return [
        {"role": role, "content": text, "loss": None}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _loss(given: object, role: object, where: str) -> bool:
    """Whether a turn is learnt: `loss`, or OpenAI's `weight` of 0 or 1; every reply is unless it says otherwise."""
    if given is None:
        return True
    if not isinstance(given, (bool, int)) or given not in (0, 1):
        raise DataError(f"{where}: loss is {given!r}; expected true or false")
    if given and role in ("system", "user"):
        raise DataError(f"{where}: loss is true, but only replies of the assistant can be learnt")
    return bool(given)


def _check(messages: tuple[Message, ...], where: str) -> None:
    """What training needs of a conversation, beyond that it can be read."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: no reply of the assistant, so there is nothing to learn")
    if "system" in roles[1:]:
        raise DataError(f"{where}: message {roles.index('system', 1)} is a system one; only the first can be")
    if roles[0] == "assistant":
        raise DataError(f"{where}: message 0 is the assistant's, with nothing before it to answer")
    if roles[-1] != "assistant":
        raise DataError(f"{where}: the last message is the {roles[-1]}'s; a sample ends with the assistant's reply")
    learnt = [message for message in messages if message.role == "assistant" and message.loss]
    if not learnt:
        raise DataError(f"{where}: every reply has loss false, so there is nothing to learn")
    if not any(isinstance(part, Text) and part.text.strip() for message in learnt for part in message.parts):
        raise DataError(f"{where}: the assistant's reply is empty, so there is nothing to learn")
