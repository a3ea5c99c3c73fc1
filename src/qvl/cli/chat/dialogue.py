"""The state of a conversation: a system turn and turns of question and answer. Values, never changed in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from qvl.messages import Image, Message, Part, Text, Video


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    asked: as it was typed. sent: the same with the limits of the time laid over its media; what the model was given.
    answer: the reply, its grounding marks kept; more than one message only in a conversation that came from a file.
    """

    asked: tuple[Message, ...]
    sent: tuple[Message, ...]
    answer: tuple[Message, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.sent, *self.answer)

    @property
    def media(self) -> tuple[Image | Video, ...]:
        return media_of(self.sent)


@dataclass(frozen=True)
class Dialogue:
    """What the model has been told so far; every turn has its answer."""

    system: Message | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation as the model takes it."""
        return (*self.opening, *(message for turn in self.turns for message in turn.messages))

    @property
    def opening(self) -> tuple[Message, ...]:
        return () if self.system is None else (self.system,)

    def with_turn(self, turn: Turn) -> Dialogue:
        return replace(self, turns=(*self.turns, turn))

    def without_last(self) -> Dialogue:
        return replace(self, turns=self.turns[:-1])

    def without(self, numbers: Collection[int]) -> Dialogue:
        """Leave out the turns of these numbers, counted from 1."""
        return replace(self, turns=tuple(t for number, t in enumerate(self.turns, 1) if number not in numbers))


def from_messages(messages: Sequence[Message]) -> tuple[Dialogue, tuple[Message, ...]]:
    """Sort a conversation into turns; and what it ends with that has no answer yet."""
    system = messages[0] if messages and messages[0].role == "system" else None
    rest = list(messages[1:] if system else messages)
    turns: list[Turn] = []
    while rest:
        asked = _take(rest, answers=False)
        answer = _take(rest, answers=True)
        if not answer:
            return Dialogue(system, tuple(turns)), asked
        turns.append(Turn(asked, asked, answer))
    return Dialogue(system, tuple(turns)), ()


def _take(rest: list[Message], *, answers: bool) -> tuple[Message, ...]:
    count = next((i for i, message in enumerate(rest) if (message.role == "assistant") != answers), len(rest))
    taken = tuple(rest[:count])
    del rest[:count]
    return taken


def media_of(messages: Sequence[Message]) -> tuple[Image | Video, ...]:
    """The pictures and clips of some messages in order."""
    return tuple(part for message in messages for part in message.parts if not isinstance(part, Text))


def text_of(parts: Sequence[Part]) -> str:
    """The words of a message, without its media."""
    return "".join(part.text for part in parts if isinstance(part, Text))
