"""The native choice of a token is that of the composed one, for the same logits, settings and draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qvl.ops.sampling import SamplingRule, filtered, sample
from tests.unit.ops.levels import each_level, running

NONE = np.zeros(0, np.int64)
DRAWS = (0.0, 1e-9, 0.1, 0.5, 0.77, 0.999, float(np.nextafter(1.0, 0.0)))


def logits_of(kind: str, words: int) -> np.ndarray:
    random = np.random.default_rng(words)
    values = random.normal(size=words)
    if kind == "peaked":
        values = values * 6
    elif kind == "flat":
        values = values * 0.01
    elif kind == "tied":
        values = np.round(values * 2) / 2
    elif kind == "equal":
        values = np.zeros(words)
    elif kind == "banned":
        values[random.random(words) < 0.5] = -np.inf
        values[0] = 0.0
    return values.astype(np.float32)


def both(level: str, *arguments: object) -> tuple[int | None, int | None]:
    with running("native", level):
        found = sample(*arguments)  # type: ignore[arg-type]
    with running("composed"):
        return found, sample(*arguments)  # type: ignore[arg-type]


RULES = [
    SamplingRule(),
    SamplingRule(temperature=1.0),
    SamplingRule(temperature=0.7, top_k=20, top_p=0.8),
    SamplingRule(temperature=1.3, top_k=3000),
    SamplingRule(temperature=1.0, top_p=0.5),
    SamplingRule(temperature=1.0, top_p=0.999999),
    SamplingRule(temperature=0.01, top_p=0.001, top_k=1),
    SamplingRule(temperature=1.0, min_p=0.05),
    SamplingRule(temperature=2.0, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    SamplingRule(temperature=100.0, top_p=0.3),
]


@each_level
@pytest.mark.parametrize("kind", ["plain", "peaked", "flat", "tied", "equal", "banned"])
@pytest.mark.parametrize("words", [1, 3, 64, 1000, 20_001])
def test_the_same_token(level: str, words: int, kind: str) -> None:
    logits = logits_of(kind, words)
    seen, banned = np.asarray([0, 2, 700, 10**6]), np.asarray([1, 5, 10**6])
    for rule, uniform in itertools.product(RULES, DRAWS):
        found, expected = both(level, logits, rule, seen, banned, uniform)
        assert found == expected, (rule, uniform)


@each_level
@pytest.mark.parametrize("kind", ["peaked", "flat"])
def test_the_same_token_of_a_whole_vocabulary(level: str, kind: str) -> None:
    logits = logits_of(kind, 151_936)
    before = logits.copy()
    for rule in RULES:
        found, expected = both(level, logits, rule, NONE, np.asarray([int(logits.argmax())]), 0.6)
        assert found == expected, rule
    np.testing.assert_array_equal(logits, before)


@each_level
def test_the_kept_tokens_are_those_of_the_reference(level: str) -> None:
    """Draws all over the sum reach every kept token and no other."""
    logits = logits_of("peaked", 300)
    rule = SamplingRule(temperature=5.0, top_k=40, top_p=0.7, min_p=0.05)
    kept = set(np.flatnonzero(np.isfinite(filtered(logits, rule))).tolist())
    assert 3 < len(kept) < 40
    with running("native", level):
        drawn = {sample(logits, rule, NONE, NONE, i / 5000) for i in range(5000)}
    assert drawn == kept


@each_level
def test_of_equal_logits_the_first_is_taken(level: str) -> None:
    logits = np.zeros(100, np.float32)
    logits[[70, 31, 99]] = 2.0
    assert both(level, logits, SamplingRule(), NONE, NONE, 0.0) == (31, 31)
    assert both(level, logits, SamplingRule(), NONE, np.asarray([31]), 0.0) == (70, 70)
    penal = SamplingRule(repetition_penalty=2.0)
    assert both(level, logits, penal, np.asarray([31, 70]), NONE, 0.0) == (99, 99)


@each_level
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_said(level: str, wrong: float) -> None:
    for place in (0, 7, 99):
        logits = np.zeros(100, np.float32)
        logits[place] = wrong
        assert both(level, logits, SamplingRule(temperature=1.0), NONE, NONE, 0.5) == (None, None)
        assert both(level, logits, SamplingRule(), NONE, NONE, 0.0) == (None, None)
    nothing = np.full(100, -np.inf, np.float32)
    assert both(level, nothing, SamplingRule(temperature=1.0), NONE, NONE, 0.5) == (None, None)


def test_what_does_not_fit_is_named() -> None:
    with running("native") as module:
        rest = (NONE, 1.0, NONE, 1.0, 0, 1.0, float("-inf"))
        with pytest.raises(ValueError, match="sample: logits must be float32"):
            module.sample(np.zeros(4), *rest, 0.5)
        with pytest.raises(ValueError, match="sample: logits must be float32"):
            module.sample(np.zeros((2, 2), np.float32), *rest, 0.5)
        with pytest.raises(ValueError, match="sample: uniform must be"):
            module.sample(np.zeros(4, np.float32), *rest, 1.0)
