"""The draw itself, at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from qvl.runtime.records import Sampling
from qvl.runtime.sampler import Sampler


class Largest:
    """A generator whose every draw is the largest float below 1."""

    def random(self) -> float:
        return float(np.nextafter(1.0, 0.0))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("words", [3, 1000, 151936])
def test_the_largest_draw_is_still_a_token(seed: int, words: int) -> None:
    logits = np.random.default_rng(seed).normal(size=words).astype(np.float32) * 4
    sampler = Sampler(Sampling(temperature=1.0), [], [])
    sampler._random = Largest()  # type: ignore[assignment]
    assert 0 <= sampler.draw(logits) < words


def test_the_largest_draw_is_a_token_that_can_be() -> None:
    """Behind the best token the rest weighs nothing: exp(-2000) is 0."""
    logits = np.full(1000, -2000.0, np.float32)
    logits[7] = 0.0
    sampler = Sampler(Sampling(temperature=1.0), [], [])
    sampler._random = Largest()  # type: ignore[assignment]
    assert sampler.draw(logits) == 7


def test_a_draw_that_came_to_nothing_is_planned_again_as_it_was() -> None:
    settings = Sampling(temperature=1.0, seed=3)
    once, again = (Sampler(settings, [1], [0]) for _ in range(2))
    planned = []
    for token in (5, 6):
        planned.append(once.plan().uniform)
        once.settle(token)
    assert [again.plan().uniform, again.plan().uniform] == [planned[0]] * 2
    again.settle(5)
    assert again.plan().uniform == planned[1] != planned[0]
