"""An engine that answers batches by echo, in an order of its own, and keeps account of what it was asked."""

from __future__ import annotations

import os
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import MARKED, STATS

from qvl.cli import batch_output
from qvl.errors import MediaError, QvlError, UnforeseenError
from qvl.messages import Image, Message, Text
from qvl.processing.prompt import Prompt, Vision
from qvl.profile import Profile
from qvl.runtime.generation import GenerationConfig, resolve
from qvl.runtime.records import Answer, Finished, Request, Sampling

RECORDS = [
    '{"prompt": "one"}',
    '{"id": "two", "prompt": "zwei \\u4e8c", "max_new_tokens": 7, "temperature": 0}',
    "{bad",
    '{"id": "odd", "prompt": "odd"}',
    '{"id": 50, "image": "cat.png", "prompt": "five"}',
    '{"id": 60, "image": "missing.png", "prompt": "six"}',
    '{"prompt": "seven", "top_p": 3}',
    '{"messages": [{"role": "user", "content": "eight"}]}',
    *(f'{{"prompt": "more {number}"}}' for number in range(8)),
]


@dataclass
class Echo:
    """What the engines were asked. fail_after: raise KeyboardInterrupt once so many answers were given."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    messages: list[tuple[Message, ...]] = field(default_factory=list)
    most_open: int = 0
    loads: int = 0
    fail_after: int | None = None
    dtype: str = "float32"


def echo_engine(echo: Echo) -> type:
    class Engine:
        def __init__(self, profile: Profile) -> None:
            self.profile = profile
            self.folder = echo.folder
            self.adapters = ()
            self.quantization = None
            self.cache_dtype = echo.dtype
            self.placement = types.SimpleNamespace(dtype=echo.dtype)

        @classmethod
        def open(cls, profile: Profile) -> Engine:
            return cls(profile)

        def load_weights(self, **_options: Any) -> None:
            echo.loads += 1

        def sampling(self, **overrides: Any) -> Sampling:
            return resolve(GenerationConfig(frozenset(), {}), {}, overrides)

        def serve(self, requests: Iterable[Request], *, batch_size: int, check_memory: bool) -> Iterator[Finished]:
            assert check_memory
            source, going, given = iter(requests), [], 0
            while True:
                while len(going) < batch_size and (request := next(source, None)) is not None:
                    going.append(request)
                    echo.most_open = max(echo.most_open, len(going))
                if not going:
                    return
                # The last to come is the first to go, but every third time it is the first: order is the run's matter.
                request = going.pop(0 if given % 3 == 2 else -1)
                given += 1
                if echo.fail_after is not None and given > echo.fail_after:
                    raise KeyboardInterrupt
                yield _finished(request, echo)

    return Engine


def _finished(request: Request, echo: Echo) -> Finished:
    messages = request.conversation
    assert isinstance(messages, tuple)
    parts = messages[-1].parts
    text = "".join(part.text for part in parts if isinstance(part, Text))
    echo.asked.append(text)
    echo.samplings.append(request.sampling)
    echo.messages.append(messages)
    sources = [str(part.source) for part in parts if isinstance(part, Image)]
    missing = [source for source in sources if not Path(source).exists()]
    if missing:
        return Finished(request.key, None, None, MediaError(f"{missing[0]}: no such file"))
    if text == "odd":
        return Finished(request.key, None, None, QvlError("this one\nfails"))
    if text == "bug":
        unforeseen = UnforeseenError("TypeError: nobody thought of this")
        unforeseen.__cause__ = TypeError("nobody thought of this")
        return Finished(request.key, None, None, unforeseen)
    visions = tuple(Vision("image", np.zeros((4, 1176), np.float32), (1, 2, 2), (100, 200)) for _ in sources)
    prompt = Prompt(np.zeros(12, np.int64), np.zeros((3, 12), np.int64), 12, visions)
    marked = MARKED if sources else text
    answer = Answer(f"{text}!", marked, tuple(range(len(text))), "stop", replace(STATS, new_tokens=len(text)))
    return Finished(request.key, answer, prompt, None)


def changed(old: str, new: str) -> None:
    """Put something else into the batch of the fixture `batch`."""
    path = Path("data/in.jsonl")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def lines_of(path: Path) -> list[Mapping[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let the file of a batch take so many bytes more, the last of them in a part of a line, and then none."""
    real, left = os.write, [room]

    def write(descriptor: int, data: bytes) -> int:
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        data = bytes(data)[: left[0]]
        left[0] -= len(data)
        return real(descriptor, data)

    monkeypatch.setattr(batch_output.os, "write", write)
