"""An engine that answers from a script, and a standard input of given bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from qvl.messages import Image, Message, Text
from qvl.processing.prompt import Prompt, Vision
from qvl.profile import Profile
from qvl.runtime.records import Chunk, FinishReason, Sampling, Stats
from qvl.runtime.sampler import check

STATS = Stats(12, 4, 3, 1.0, 0.1, 0.2, 0.3, 0.6, 0.5, 6.0, 2**30)
MARKED = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(500,1000)<|box_end|>"


@dataclass
class Script:
    """What the fake engine is to do, and what it was asked."""

    texts: Sequence[str] = ("A ", "cat", ".")
    marked: str = ""
    finish_reason: FinishReason = "stop"
    stats: Stats = STATS
    error: BaseException | None = None  # raised after the first chunk
    prompt_error: Exception | None = None
    memory_error: Exception | None = None
    checkpoint: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (100, 200)
    profile: Profile = field(default_factory=Profile)
    messages: tuple[Message, ...] = ()
    sampling: Sampling | None = None
    load: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> tuple[Any, ...]:
        return self.messages[-1].parts


def fake_engine(script: Script) -> type:
    class Engine:
        def __init__(self, profile: Profile) -> None:
            self.profile = profile

        @classmethod
        def open(cls, profile: Profile) -> Engine:
            script.profile = profile
            return cls(profile)

        def load_weights(self, **options: Any) -> None:
            script.load = options
            if options.get("on_progress"):
                options["on_progress"](1, 2)

        def prompt(self, messages: Sequence[Message]) -> Prompt:
            if script.prompt_error:
                raise script.prompt_error
            script.messages = tuple(messages)
            visions = tuple(
                Vision(
                    "image" if isinstance(part, Image) else "video",
                    np.zeros((4, 1176), np.float32),
                    (1, 2, 2),
                    script.size,
                )
                for message in messages
                for part in message.parts
                if not isinstance(part, Text)
            )
            return Prompt(np.zeros(12, np.int64), np.zeros((3, 12), np.int64), 12, visions)

        def sampling(self, **overrides: Any) -> Sampling:
            script.sampling = replace(Sampling(), **{**script.checkpoint, **overrides})
            check(script.sampling)
            return script.sampling

        def check_memory(self, _prompt: Prompt, _sampling: Sampling) -> None:
            if script.memory_error:
                raise script.memory_error

        def stream(self, _prompt: Prompt, _sampling: Sampling) -> Iterator[Chunk]:
            for index, text in enumerate(script.texts):
                last = index == len(script.texts) - 1
                yield Chunk(text, (index,), script.finish_reason if last else None, script.stats if last else None)
                if script.error:
                    raise script.error

        def marked_text(self, _token_ids: Sequence[int]) -> str:
            return script.marked

    return Engine


class Terminal(io.TextIOWrapper):
    """A standard input of bytes, piped or not."""

    def __init__(self, data: bytes = b"", tty: bool = True) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


Run = Callable[..., tuple[int, str, str]]


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(data, tty=False))
