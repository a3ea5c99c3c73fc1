"""The choice of a token from its logits, in the order and with the meaning transformers gives each setting.

The composed body is NumPy on one row of logits: Paddle's own sampling ops were measured at 21 to 31 ms for 151 936
words, where this takes a few and the native body a fraction of one. Both choose the same token for the same draw. On a
GPU the native body takes several rows of logits where they lie, and the tokens alone come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import paddle

from qvl.ops import native
from qvl.ops.bodies import gpu_for

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingRule:
    """temperature: 0 takes the most likely token. top_k: 0 is off. top_p, repetition_penalty: 1 is off. min_p: 0 is."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, eq=False)
class Draw:
    """How one token is drawn; see `sample`."""

    rule: SamplingRule
    seen: Ids
    banned: Ids
    uniform: float


# SamplingRule of ext/include/qvl/cuda/sampling.h.
_RULE = np.dtype(
    [
        *((name, np.int64) for name in ("seen_begin", "seen_end", "banned_begin", "banned_end", "top_k")),
        *((name, np.float64) for name in ("top_p", "uniform")),
        *((name, np.float32) for name in ("penalty", "temperature", "min_logit")),
        ("greedy", np.int32),
    ]
)


def samples_there(logits: paddle.Tensor) -> bool:
    """Whether tokens are drawn where these logits lie; otherwise they are wanted in NumPy."""
    return gpu_for(logits) is not None


def sample_rows(logits: paddle.Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """`sample` for each row of logits [rows, vocab_size] that lie on a GPU."""
    gpu = gpu_for(logits)
    if gpu is None:
        rows: list[Logits] = list(logits.astype("float32").numpy())
        return [sample(row, d.rule, d.seen, d.banned, d.uniform) for row, d in zip(rows, draws, strict=True)]
    settings, seen, banned = settings_of(draws)
    tokens = gpu.sample(logits, paddle.to_tensor(settings), seen, banned).numpy()
    return [None if token < 0 else int(token) for token in tokens]


def settings_of(draws: Sequence[Draw]) -> tuple[npt.NDArray[np.uint8], int, int]:
    """What the native body of a GPU takes: rules, seen and banned tokens in one piece; and how many of the latter."""
    rules = np.zeros(len(draws), _RULE)
    seen, banned = 0, 0
    for to, draw in zip(rules, draws, strict=True):
        rule = draw.rule
        to["seen_begin"], to["banned_begin"] = seen, banned
        seen, banned = seen + len(draw.seen), banned + len(draw.banned)
        to["seen_end"], to["banned_end"] = seen, banned
        to["top_k"], to["top_p"], to["uniform"] = rule.top_k, rule.top_p, draw.uniform
        to["penalty"], to["temperature"] = rule.repetition_penalty, rule.temperature
        to["min_logit"], to["greedy"] = _least(rule), rule.temperature == 0
    ids = [np.asarray(draw.seen, np.int64) for draw in draws] + [np.asarray(draw.banned, np.int64) for draw in draws]
    parts = [rules.view(np.uint8), *(part.view(np.uint8) for part in ids)]
    return np.concatenate(parts), seen, banned


def _least(rule: SamplingRule) -> float:
    """How far below the most likely logit one may be."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.float32(rule.min_p)))


def sample(logits: Logits, rule: SamplingRule, seen: Ids, banned: Ids, uniform: float) -> int | None:
    """A token, or None when the logits are not finite.

    logits: float32 [vocab_size]. seen: tokens that the penalty is for, banned: tokens that must not come, each once;
    ids outside the vocabulary are passed over. uniform: 0 or more and below 1, where in the sum of the probabilities,
    in rising order of tokens, the draw lands.
    """
    module = native.library()
    if module is None:
        return _composed(logits, rule, seen, banned, uniform)
    token: int = module.sample(
        np.ascontiguousarray(logits, dtype=np.float32),
        seen,
        rule.repetition_penalty,
        banned,
        rule.temperature,
        rule.top_k,
        rule.top_p,
        _least(rule),
        uniform,
    )
    return None if token < 0 else token


def _composed(logits: Logits, rule: SamplingRule, seen: Ids, banned: Ids, uniform: float) -> int | None:
    scores = _without(penalised(logits, rule.repetition_penalty, seen), banned)
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        return None
    return best if rule.temperature == 0 else _drawn(filtered(scores, rule), uniform)


def penalised(logits: Logits, penalty: float, seen: Ids) -> Logits:
    """The logits with those of seen tokens made less likely: divided by the penalty where positive, else multiplied."""
    if penalty == 1.0 or not len(seen):
        return logits
    ids = seen[(seen >= 0) & (seen < len(logits))]
    scores = logits.copy()
    scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
    return scores


def _without(scores: Logits, banned: Ids) -> Logits:
    if not len(banned):
        return scores
    masked = scores.copy()
    masked[banned[(banned >= 0) & (banned < len(masked))]] = -np.inf
    return masked


def _drawn(scores: Logits, uniform: float) -> int:
    kept = np.flatnonzero(np.isfinite(scores))
    cumulative = np.cumsum(_softmax(scores[kept].astype(np.float64)))
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    # A draw that rounds up to the whole sum is past the end: it means the last token with any weight.
    return int(kept[min(place, np.searchsorted(cumulative, cumulative[-1]))])


def filtered(logits: Logits, rule: SamplingRule) -> Logits:
    """Temperature, then top-k, top-p and min-p: the logits with everything ruled out at -inf."""
    scores = logits / np.float32(rule.temperature)
    if 0 < rule.top_k < len(scores):
        threshold = np.partition(scores, -rule.top_k)[-rule.top_k]
        scores = np.where(scores < threshold, -np.inf, scores).astype(np.float32)
    if rule.top_p < 1.0:
        scores = _top_p(scores, rule.top_p)
    if rule.min_p > 0.0:
        # p < min_p * p_max, said in logits.
        scores = np.where(scores < scores.max() + np.log(np.float32(rule.min_p)), -np.inf, scores)
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
