"""Whether a model fits on a device: what the runtime's own estimate says of the profile's limits. Imports Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvl.doctor.records import Fit, Verdict
from qvl.doctor.subjects import Subject
from qvl.hub.locate import find
from qvl.model.foreign import published_foreign
from qvl.model.quantization import WIDTHS, Quantization, chosen_quantization, foreign_quantization
from qvl.processing.prompt import Prompt
from qvl.runtime import memory
from qvl.runtime.split.layout import check_split
from qvl.runtime.split.model import part_config

# What the profile key `quantize` takes beside "auto".
QUANTISATIONS = ("none", *WIDTHS)
# What a question takes beside its picture, and how finely the context that fits is told.
_QUESTION_TOKENS = 64
_STEP = 256


@dataclass(frozen=True)
class Room:
    """Bytes of a device: free now, and in all."""

    free: int
    size: int


def quantization_of(subject: Subject, device: str, dtype: str) -> Quantization | None:
    """What a run would quantise its weights to. Raises UsageError, DeviceError for what it would refuse."""
    folder = find(subject.model)
    foreign = published_foreign(subject.model) if folder is None else None
    if foreign is not None:
        return foreign_quantization(foreign, subject.quantize, subject.model, device, dtype)
    # A folder without weights has none that are quantised.
    return chosen_quantization(subject.quantize, folder or Path(subject.model), device, dtype)


def fit(subject: Subject, device: str, dtype: str, room: Room) -> Fit:
    """The parts of a run at the full context, and the most of it that fits beside one picture.

    Of a model that is split it is what each device has to hold. Raises UsageError, DeviceError for weights that cannot
    be had on this device.
    """
    quantization = quantization_of(subject, device, dtype)
    parts = subject.parts
    if parts > 1 and device == "cpu":  # they are processes that share its memory
        room = Room(room.free // parts, room.size // parts)
    check_split(subject.config, (device,) * parts if parts > 1 else (), quantization)
    weights = memory.weight_bytes(subject.config, dtype, (), quantization, parts)
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
        quantize="none" if quantization is None else quantization.width,
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
    cache = memory.Held(dtype if subject.cache_dtype == "auto" else subject.cache_dtype)
    return memory.need(part_config(subject.config, subject.parts), prompt, new, dtype, weights, cache)


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
