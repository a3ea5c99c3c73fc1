"""Continuous batching: what joins, what leaves, and that each request gives what it gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import MediaError
from qvl.messages import Image, Message
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Request, Sampling


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))


def requests(count: int) -> list[Request]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        side = int(random.integers(30, 200))
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        parts = [Image(pixels)] if number % 3 else []
        message = Message.of("user", *parts, "word " * int(random.integers(1, 40)))
        made.append(Request(number, [message], Sampling(max_new_tokens=int(random.integers(1, 24)))))
    return made


def test_requests_of_all_lengths_answer_as_they_do_alone(engine: Engine) -> None:
    made = requests(17)
    bad = Request("bad", [Message.of("user", Image("/no/such/file.png"))], Sampling())
    finished = list(engine.serve([*made[:3], bad, *made[3:]], batch_size=4))
    assert len(finished) == 18
    by_key = {result.key: result for result in finished}
    assert isinstance(by_key["bad"].error, MediaError) and by_key["bad"].answer is None
    for request in made:
        result = by_key[request.key]
        assert result.error is None and result.answer is not None and result.prompt is not None
        assert result.answer.token_ids == engine.generate(request.conversation, request.sampling).token_ids


def test_requests_are_taken_as_there_is_room_for_them(engine: Engine) -> None:
    taken = 0

    def lazily() -> Iterator[Request]:
        nonlocal taken
        for request in requests(12):
            taken += 1
            yield request

    for number, _ in enumerate(engine.serve(lazily(), batch_size=2), start=1):
        assert taken <= number + 2 + 2
    assert taken == 12
