"""A conversation without a model and without a terminal: a scripted model, and a view that remembers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from scripted import STATS

from qvl.cli.chat.dialogue import media_of, text_of
from qvl.cli.chat.talk import Chat
from qvl.cli.options import MediaOptions, ModelOptions
from qvl.errors import ContextLimitError, UsageError
from qvl.messages import Message
from qvl.profile import Profile
from qvl.runtime.records import Chunk, Sampling
from qvl.runtime.sampler import check

MEDIUM = 10  # tokens of a picture or clip; a word is one token, a message one more


class FakeModel:
    """Answers with the words it is given to say. A conversation's tokens are its words and pictures."""

    def __init__(self, max_context: int = 1000) -> None:
        self.profile = Profile(name="fake", model="fake")
        self.choice = SimpleNamespace(model=ModelOptions(), media=MediaOptions())
        self.remark: str | None = None
        self.max_context = max_context
        self.raw_pixels = False
        self.held_tokens = 0
        self.says: list[str] = ["An ", "answer."]
        self.ends = "stop"
        self.fails: Exception | None = None
        self.breaks_after: int | None = None  # chunks; then Ctrl-C
        self.asked: list[tuple[Message, ...]] = []
        self.drawn: list[Sampling] = []
        self.loaded = self.forgotten = 0
        self.others: dict[str, FakeModel | Exception] = {}

    def load(self) -> None:
        self.loaded += 1
        if self.fails:
            raise self.fails

    def release(self) -> None:
        self.loaded = 0

    def other(self, name: str) -> FakeModel:
        other = self.others.get(name, UsageError(f"{name}: no such model"))
        if isinstance(other, Exception):
            raise other
        return other

    def described(self) -> list[tuple[str, str]]:
        return [("model", self.profile.model)]

    def sampling(self, overrides: Mapping[str, Any]) -> Sampling:
        sampling = replace(Sampling(), **overrides)
        check(sampling)
        return sampling

    def prompt(self, messages: Sequence[Message], sampling: Sampling) -> range:
        if self.fails:
            raise self.fails
        tokens = self.prompt_tokens(messages)
        if tokens >= self.max_context:
            raise ContextLimitError(tokens, MEDIUM * len(media_of(messages)), self.max_context)
        self.asked.append(tuple(messages))
        self.drawn.append(sampling)
        return range(tokens)

    def stream(self, _prompt: object, _sampling: Sampling) -> Iterator[Chunk]:
        for index, text in enumerate(self.says):
            if index == self.breaks_after:
                raise KeyboardInterrupt
            last = index == len(self.says) - 1
            yield Chunk(text, (index,), self.ends if last else None, STATS if last else None)  # type: ignore[arg-type]

    def forget(self) -> None:
        self.forgotten += 1

    def tokens(self, messages: Sequence[Message]) -> int:
        words = sum(len(text_of(message.parts).split()) for message in messages)
        return words + MEDIUM * len(media_of(messages)) + len(messages)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return self.tokens(messages)

    def history(self, _token_ids: Sequence[int], text: str) -> str:
        return text


class Sink:
    def __init__(self, stops_after: int | None) -> None:
        self.texts: list[str] = []
        self._stops_after = stops_after

    @property
    def stopped(self) -> bool:
        return self._stops_after is not None and len(self.texts) >= self._stops_after

    def write(self, text: str) -> None:
        self.texts.append(text)


class FakeView:
    """Remembers what it was to show. stops_after: pieces of an answer, then it asks for the end."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.errors: list[str] = []
        self.tables: list[list[tuple[str, str]]] = []
        self.answers: list[str] = []
        self.stops_after: int | None = None
        self.edited: str | None = None
        self.to_edit = ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)

    def rows(self, rows: Sequence[tuple[str, str]]) -> None:
        self.tables.append(list(rows))

    def working(self, _text: str) -> AbstractContextManager[object]:
        return nullcontext()

    @contextmanager
    def answering(self, _text: str) -> Iterator[Sink]:
        sink = Sink(self.stops_after)
        yield sink
        self.answers.append("".join(sink.texts))

    def edit(self, text: str) -> str | None:
        self.to_edit = text
        return self.edited


class Talk:
    """A Chat on both, and short words for what tests ask of it."""

    def __init__(self, max_context: int = 1000) -> None:
        self.model, self.view = FakeModel(max_context), FakeView()
        self.chat = Chat(self.model, self.view)  # type: ignore[arg-type]

    def say(self, *lines: str) -> None:
        """Lines that are to work."""
        for line in lines:
            assert self.chat.respond(line)
            assert self.view.errors == []

    def fail(self, line: str) -> str:
        """A line that is not to work: what it says, with the conversation as it was."""
        before = self.chat.dialogue
        assert self.chat.respond(line)
        assert len(self.view.errors) == 1 and self.chat.dialogue is before
        return self.view.errors.pop()

    @property
    def turns(self) -> list[tuple[str, str]]:
        """What was asked and answered, without the media."""
        return [
            ("".join(text_of(m.parts) for m in turn.asked), "".join(text_of(m.parts) for m in turn.answer))
            for turn in self.chat.dialogue.turns
        ]
