"""The draws of one answer: what was seen, what may not come yet, and the random state. The choice itself is an op."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral, Real
from typing import get_args

import numpy as np
import numpy.typing as npt
import paddle

from qvl import ops
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
_NONE = np.zeros(0, np.int64)

# Beyond these a draw is greedy, uniform or overflows float32; nobody means that. The profile's bounds are the same.
TEMPERATURES = (0.001, 100.0)
PENALTIES = (0.01, 100.0)


class Sampler:
    """Draws the tokens of one answer. Keeps which tokens were seen and the random state; make one an answer."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int], eos_ids: Iterable[int]) -> None:
        check(sampling)
        self.sampling = sampling
        self._eos = np.asarray(sorted(eos_ids), np.int64)
        penalised = sampling.repetition_penalty != 1.0
        self._seen = np.unique(np.fromiter(prompt_ids, np.int64)) if penalised else _NONE
        self._rule = ops.SamplingRule(
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
        )
        self._drawn = 0
        self._uniform: float | None = None
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def draw(self, logits: Logits | paddle.Tensor) -> int:
        """The next token from float32 logits [vocab_size]. Raises QvlError when they are not finite."""
        plan = self.plan()
        if isinstance(logits, paddle.Tensor):
            return self.settle(ops.sample_rows(logits.unsqueeze(0), [plan])[0])
        return self.settle(ops.sample(logits, plan.rule, plan.seen, plan.banned, plan.uniform))

    def plan(self) -> ops.Draw:
        """How the next token is to be drawn, for who draws those of several answers together.

        The same until it is settled: a step that failed is taken again.
        """
        settings = self.sampling
        banned = self._eos if settings.ignore_eos or self._drawn < settings.min_new_tokens else _NONE
        if self._uniform is None:
            self._uniform = 0.0 if settings.greedy else self._random.random()
        return ops.Draw(self._rule, self._seen, banned, self._uniform)

    def settle(self, token: int | None) -> int:
        """Take what was drawn as planned; None is for logits that are not finite, which raises QvlError."""
        if token is None:
            raise QvlError("the model's logits are not finite; its dtype overflows here: use bfloat16 or float32")
        self._drawn += 1
        self._uniform = None
        if self.sampling.repetition_penalty != 1.0 and token not in self._seen:
            self._seen = np.append(self._seen, token)
        return token


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
