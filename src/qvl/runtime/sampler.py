"""Choosing the next token from its logits, in the order and with the meaning transformers gives each setting.

NumPy on one row of logits: with 151 936 words a draw takes a millisecond, where Paddle's own sampling ops were measured
at 21 to 31.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral, Real
from typing import get_args

import numpy as np
import numpy.typing as npt

from qvl.errors import QvlError, UsageError
from qvl.runtime.records import Sampling, Speculate

# What the types of `Sampling` allow, and how they are called.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (Integral, "a whole number"),
    "int | None": ((Integral, type(None)), "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}

Logits = npt.NDArray[np.float32]

# Beyond these a draw is greedy, uniform or overflows float32; nobody means that. The profile's bounds are the same.
TEMPERATURES = (0.001, 100.0)
PENALTIES = (0.01, 100.0)


class Sampler:
    """Draws the tokens of one answer. Keeps which tokens were seen and the random state; make one an answer."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int], eos_ids: Iterable[int]) -> None:
        check(sampling)
        self.sampling = sampling
        self._eos = np.asarray(sorted(eos_ids), np.int64)
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        self._drawn = 0
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def draw(self, logits: Logits) -> int:
        """The next token from float32 logits [vocab_size]. Raises QvlError when they are not finite."""
        settings = self.sampling
        scores = self._without_eos(self._penalised(logits))
        best = int(np.argmax(scores))
        if not np.isfinite(scores[best]):
            raise QvlError("the model's logits are not finite; its dtype overflows here: use bfloat16 or float32")
        token = best if settings.greedy else self._random_token(filtered(scores, settings))
        self._drawn += 1
        if settings.repetition_penalty != 1.0:
            self._seen.add(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0 or not self._seen:
            return logits
        ids = np.fromiter((i for i in self._seen if i < len(logits)), np.int64)
        scores = logits.copy()
        seen = scores[ids]
        scores[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        return scores

    def _without_eos(self, scores: Logits) -> Logits:
        if self._drawn >= self.sampling.min_new_tokens and not self.sampling.ignore_eos:
            return scores
        masked = scores.copy()
        masked[self._eos[self._eos < len(masked)]] = -np.inf
        return masked

    def _random_token(self, scores: Logits) -> int:
        kept = np.flatnonzero(np.isfinite(scores))
        weights = _softmax(scores[kept].astype(np.float64))
        cumulative = np.cumsum(weights)
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        # A draw that rounds up to the whole sum is past the end: it means the last token with any weight.
        return int(kept[min(place, np.searchsorted(cumulative, cumulative[-1]))])


def filtered(logits: Logits, sampling: Sampling) -> Logits:
    """Temperature, then top-k, top-p and min-p: the logits with everything ruled out at -inf."""
    scores = logits / np.float32(sampling.temperature)
    if 0 < sampling.top_k < len(scores):
        threshold = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < threshold, -np.inf, scores).astype(np.float32)
    if sampling.top_p < 1.0:
        scores = _top_p(scores, sampling.top_p)
    if sampling.min_p > 0.0:
        # p < min_p * p_max, said in logits.
        scores = np.where(scores < scores.max() + np.log(np.float32(sampling.min_p)), -np.inf, scores)
    return scores.astype(np.float32, copy=False)


def _top_p(scores: Logits, top_p: float) -> Logits:
    """Keep the fewest tokens whose probabilities add up to top_p or more; at least one."""
    alive = np.flatnonzero(np.isfinite(scores))
    ascending = alive[np.argsort(scores[alive], kind="stable")]
    cumulative = np.cumsum(_softmax(scores[ascending].astype(np.float64)))
    dropped = ascending[:-1][cumulative[:-1] <= 1.0 - top_p]
    kept = scores.copy()
    kept[dropped] = -np.inf
    return kept


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum())


def check(sampling: Sampling) -> None:
    """Raise UsageError, naming the setting, for values that mean nothing."""
    _check_kinds(sampling)
    (coolest, hottest), (weakest, strongest) = TEMPERATURES, PENALTIES
    warmth, penalty = sampling.temperature, sampling.repetition_penalty
    rules = (
        ("max_new_tokens", sampling.max_new_tokens >= 1, "at least 1"),
        ("min_new_tokens", 0 <= sampling.min_new_tokens <= sampling.max_new_tokens, "0 to max_new_tokens"),
        ("temperature", warmth == 0 or coolest <= warmth <= hottest, f"0 (greedy) or {coolest:g} to {hottest:g}"),
        ("top_p", 0 < sampling.top_p <= 1, "over 0, at most 1"),
        ("top_k", sampling.top_k >= 0, "0 (off) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "0 to 1"),
        ("repetition_penalty", weakest <= penalty <= strongest, f"{weakest:g} to {strongest:g}"),
        ("speculate", sampling.speculate in get_args(Speculate), "auto, on or off"),
        ("seed", sampling.seed is None or sampling.seed >= 0, "0 or more"),
    )
    for name, holds, expected in rules:
        if not holds:
            raise UsageError(f"{name.replace('_', '-')} must be {expected}, not {getattr(sampling, name)!r}")
    if not all(sampling.stop):
        raise UsageError("stop holds an empty text, which would end every answer before it begins")


def _check_kinds(sampling: Sampling) -> None:
    """That every value is of its field's type: settings also come out of JSON, where anything may stand."""
    for field in fields(Sampling):
        kind, expected = _KINDS.get(str(field.type), (object, ""))
        value = getattr(sampling, field.name)
        if (isinstance(value, bool) != (kind is bool) and kind is not object) or not isinstance(value, kind):
            raise UsageError(f"{field.name.replace('_', '-')} must be {expected}, not {value!r}")
    if not isinstance(sampling.stop, (tuple, list)) or not all(isinstance(text, str) for text in sampling.stop):
        raise UsageError(f"stop must be texts, not {sampling.stop!r}")
