"""Whether a model fits on a device: what the runtime's own estimate says of the profile's limits. Imports Paddle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvl.doctor.records import Fit, Verdict
from qvl.doctor.subjects import Subject
from qvl.processing.prompt import Prompt
from qvl.runtime import memory

# What the profile key `quantize` takes; `weight_bytes` knows the size of each.
QUANTISATIONS = ("none",)
# What a question takes beside its picture, and how finely the context that fits is told.
_QUESTION_TOKENS = 64
_STEP = 256


@dataclass(frozen=True)
class Room:
    """Bytes of a device: free now, and in all."""

    free: int
    size: int


def fit(subject: Subject, device: str, dtype: str, room: Room) -> Fit:
    """The parts of a run at the full context, and the most of it that fits beside one picture."""
    weights = weight_bytes(subject, dtype)
    context = subject.context
    picture = subject.picture.tokens(subject.config.vision_config)
    smallest = min(context, picture + _QUESTION_TOKENS + subject.new_tokens)
    full, least = (_need(subject, tokens, dtype, weights) for tokens in (context, smallest))
    usable = _largest(subject, dtype, weights, room.free, smallest, context)
    return Fit(
        profiles=subject.profiles,
        model=subject.model,
        device=device,
        dtype=dtype,
        quantize=subject.quantize,
        asked=subject.asked,
        context=context,
        weights=weights,
        cache=full.cache,
        vision=full.vision,
        prefill=full.prefill,
        total=full.total,
        least=least.total,
        usable_context=usable,
        free=room.free,
        size=room.size,
        verdict=_verdict(full.total, least.total, room),
    )


def weight_bytes(subject: Subject, dtype: str) -> int:
    """Bytes of all weights as they lie in memory."""
    return memory.weight_bytes(subject.config, dtype)


def _verdict(full: int, least: int, room: Room) -> Verdict:
    if full <= room.free:
        return "full"
    if least <= room.free:
        return "short"
    return "busy" if least <= room.size else "no"


def _need(subject: Subject, tokens: int, dtype: str, weights: int) -> memory.Need:
    """For one picture and text up to `tokens` in all, the answer among them."""
    new = min(subject.new_tokens, tokens - 1)
    ids = np.broadcast_to(np.int64(0), (tokens - new,))
    prompt = Prompt(ids, np.broadcast_to(np.int64(0), (3, tokens - new)), tokens - new, (subject.picture,))
    return memory.need(subject.config, prompt, new, dtype, weights)


def _largest(subject: Subject, dtype: str, weights: int, free: int, smallest: int, context: int) -> int:
    """The longest context that fits, in whole steps; 0 when not even the smallest does."""
    if _need(subject, context, dtype, weights).total <= free:
        return context
    if _need(subject, smallest, dtype, weights).total > free:
        return 0
    low, high = smallest // _STEP, context // _STEP  # low fits or is below the smallest, high does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = _need(subject, max(smallest, middle * _STEP), dtype, weights).total <= free
        low, high = (middle, high) if fits else (low, middle)
    return max(smallest, low * _STEP)
