"""What a training run will take of a device's memory, by parts, before anything is loaded."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields

from qvl.model.config import ModelConfig
from qvl.profile_training import TrainingOptions

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 1024**3


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device. activations: kept for the backward pass by one micro-batch."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Size:
    """What one device has.

    weights, learning: parameters in all, and those that learn; held: those of which it keeps the optimiser's state.
    tokens, patches: of the largest micro-batch. parts: into how many the model is split. fetched: numbers of the
    matrices that are shared out and whole for a while; exchanged: of the largest whose whole gradient is given away.
    """

    weights: int
    learning: int
    held: int
    tokens: int
    patches: int
    dtype: str
    parts: int = 1
    fetched: int = 0
    exchanged: int = 0


def estimate(config: ModelConfig, options: TrainingOptions, run: Size) -> Estimate:
    """Memory of one device."""
    size = _SIZES[run.dtype]
    # 16-bit weights learn through float32 copies, with float32 gradients.
    master = 4 if size == 2 else 0
    layer = _layer_numbers(config, run.tokens, run.parts) * size
    kept = config.num_hidden_layers * (run.tokens * config.hidden_size * size if options.recompute else layer)
    vision_learns = options.method == "full" and "vision" in options.train
    width = config.vision_config.embed_dim * 14 + config.vision_config.intermediate_size * 4
    vision = run.patches * width * size * (config.vision_config.depth if vision_learns else 1)
    words = config.vocab_size // run.parts
    head = 4 * words * config.hidden_size if options.method == "full" and "language" in options.train else 0
    return Estimate(
        weights=(run.weights + run.fetched) * size,
        gradients=run.learning * 4 + run.exchanged * (size + 4),  # as it comes, and in float32 to be summed
        optimizer=run.held * (8 + master),
        activations=kept + (layer if options.recompute else 0) + vision,
        loss=3 * 4 * min(options.loss_chunk, run.tokens) * words + head,
    )


def largest_share(sizes: Sequence[int], devices: int) -> int:
    """The most that one device gets when whole parameters are dealt out, the largest first, to whoever has least."""
    shares = [0] * devices
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(shares, shares[0] + size)
    return max(shares)


def _layer_numbers(config: ModelConfig, tokens: int, parts: int) -> int:
    """Numbers that one decoder layer keeps: norms, projections, rotary products in float32, attention, the MLP.

    A part has its share of the heads and columns, and all of what stands between them.
    """
    queries, keys = config.num_attention_heads // parts, max(1, config.num_key_value_heads // parts)
    heads = (queries + 2 * keys) * config.head_dim
    per_token = 6 * config.hidden_size + 6 * heads + 4 * config.intermediate_size // parts
    return tokens * per_token + queries * tokens * tokens // 2
