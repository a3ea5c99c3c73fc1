"""A session answers as a fresh run does and computes only what is new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvl.messages import Image, Message
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling, Stats
from qvl.runtime.session import Session

SHORT = Sampling(max_new_tokens=12)


def picture(seed: int, side: int = 140) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))


def ask(session: Session, messages: list[Message], sampling: Sampling = SHORT) -> tuple[list[int], str, Stats]:
    chunks = list(session.stream(messages, sampling))
    assert chunks[-1].stats is not None
    return [t for chunk in chunks for t in chunk.token_ids], "".join(c.text for c in chunks), chunks[-1].stats


def test_the_second_turn_equals_a_fresh_run_and_costs_only_the_new_tokens(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(1), "What is this?")]
    first, text, stats = ask(session, talk)
    assert first == list(engine.generate(talk, SHORT).token_ids)
    assert stats.computed_tokens == stats.prompt_tokens and stats.reused_tokens == 0 and stats.encoded_visions == 1
    talk += [Message.of("assistant", text), Message.of("user", "Say more about it.")]
    second, _, stats = ask(session, talk)
    assert second == list(engine.generate(talk, SHORT).token_ids)
    assert stats.encoded_visions == 0 and stats.reused_visions == 1
    assert stats.reused_tokens > 25 and stats.computed_tokens + stats.reused_tokens == stats.prompt_tokens
