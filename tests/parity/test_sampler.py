"""Sampling settings mean what they mean to transformers."""

from __future__ import annotations

import numpy as np
import pytest

from qvl.errors import QvlError, UsageError
from qvl.ops.sampling import SamplingRule, filtered, penalised
from qvl.runtime.records import Sampling
from qvl.runtime.sampler import Sampler, check
from tests.golden import load_case

SETTINGS = [key for key in load_case("sampling") if key not in ("logits", "history")]


@pytest.mark.parametrize("key", SETTINGS)
def test_filters_equal_the_reference(key: str) -> None:
    stored = load_case("sampling")
    values = {name: float(value) for name, value in (item.split("=") for item in key.split(","))}
    if "top_k" in values:
        values["top_k"] = int(values["top_k"])
    rule = SamplingRule(**{"temperature": 1.0, **values})
    for row, (logits, history, expected) in enumerate(
        zip(stored["logits"], stored["history"], stored[key], strict=True)
    ):
        scores = filtered(penalised(logits, rule.repetition_penalty, np.unique(history)), rule)
        if row == 2 and "top_p" in values:
            # Many ties: which of them is kept is the sort's choice, how many and how likely is not.
            np.testing.assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-5)
            continue
        np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(expected))
        kept = np.isfinite(expected)
        np.testing.assert_allclose(scores[kept], expected[kept], rtol=1e-5)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.asarray([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0), [], [])
    counts = np.bincount([sampler.draw(logits) for _ in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2], atol=0.03)


def test_min_new_tokens_and_ignore_eos_keep_the_end_away() -> None:
    logits = np.asarray([0.0, 5.0, 1.0], np.float32)
    waiting = Sampler(Sampling(min_new_tokens=2), [], [1])
    assert [waiting.draw(logits) for _ in range(3)] == [2, 2, 1]
    ignoring = Sampler(Sampling(ignore_eos=True), [], [1])
    assert [ignoring.draw(logits) for _ in range(3)] == [2, 2, 2]


def test_overflowing_logits_are_an_error_and_not_exclamation_marks() -> None:
    with pytest.raises(QvlError, match="not finite"):
        Sampler(Sampling(), [], []).draw(np.full(4, np.nan, np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"min_new_tokens": 600},
        {"stop": ("",)},
    ],
)
def test_meaningless_settings_are_named(values: dict[str, object]) -> None:
    name = next(iter(values)).replace("_", "-")
    with pytest.raises(UsageError, match=name):
        check(Sampling(**values))  # type: ignore[arg-type]


def test_an_empty_stop_text_is_said_in_plain_words() -> None:
    with pytest.raises(UsageError, match="stop holds an empty text"):
        check(Sampling(stop=("",)))


@pytest.mark.parametrize("temperature", [0.001, 100.0])
@pytest.mark.parametrize("penalty", [0.01, 100.0])
@pytest.mark.filterwarnings("error")
def test_the_most_extreme_settings_still_draw_a_token(temperature: float, penalty: float) -> None:
    logits = np.linspace(-60, 60, 1000).astype(np.float32)
    sampler = Sampler(Sampling(temperature=temperature, repetition_penalty=penalty, min_p=0.1), [1, 999], [])
    assert 0 <= sampler.draw(logits) < 1000
