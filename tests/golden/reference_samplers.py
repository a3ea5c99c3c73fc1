"""What transformers' logits processors make of random logits. Imported by make_reference only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCABULARY, HISTORY = 1024, 60

# Applied in the order of generate(): penalty, temperature, top_k, top_p, min_p.
SETTINGS: tuple[dict[str, float], ...] = (
    {"repetition_penalty": 1.05},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.8},
    {"temperature": 0.7},
    {"temperature": 0.01},
    {"temperature": 1.8},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 5000},
    {"top_p": 0.001},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 0.3},
    {"temperature": 0.01, "top_k": 1, "top_p": 0.001},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"repetition_penalty": 1.1, "temperature": 1.3, "top_k": 100, "top_p": 0.8, "min_p": 0.02},
)


def sampling_reference() -> dict[str, np.ndarray]:
    """`logits` [3, 1024], the last of them full of ties; `history` [3, 60]; and a result for each setting."""
    generator = np.random.Generator(np.random.PCG64(7))
    logits = generator.standard_normal((3, VOCABULARY)).astype(np.float32) * np.float32(3)
    logits[2] = np.round(logits[2])
    history = generator.integers(0, VOCABULARY, (3, HISTORY))
    history[:, 10:20] = history[:, :10]  # a token seen twice is not punished twice
    history[:, 20] = logits.argmax(axis=1)
    arrays: dict[str, np.ndarray] = {"logits": logits, "history": history}
    for settings in SETTINGS:
        scores = torch.from_numpy(logits.copy())
        for step in _steps(settings):
            scores = step(torch.from_numpy(history), scores)
        arrays[",".join(f"{name}={value}" for name, value in settings.items())] = scores.numpy()
    return arrays


def _steps(settings: dict[str, float]) -> list[Any]:
    makers: dict[str, Any] = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": lambda value: TopKLogitsWarper(int(value)),
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    return [makers[name](settings[name]) for name in makers if name in settings]
