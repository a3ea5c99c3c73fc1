"""How much memory a run will take, by parts, and how much there is."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import paddle
import psutil

from qvl import machine
from qvl.errors import MemoryLimitError
from qvl.model.adapter import Adapter
from qvl.model.adapter_config import AdapterRequest
from qvl.model.config import ModelConfig
from qvl.ops.attention import SCORE_BYTES
from qvl.processing.prompt import Prompt
from qvl.runtime.cache import cache_bytes
from qvl.runtime.decode import slices_at_once, visions_behind

Adapters = Sequence[tuple[AdapterRequest, Adapter]]

GIB = 1024**3
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

# How many arrays of a block's inner width live at once at its peak, in the gate of the MLP. Measured on a CPU.
_MLP_COPIES = 4
_WIDTH_COPIES = 6
# Rotary embeddings are float32 whatever the model is: two tables, and at its peak a rotation in four arrays as large.
_ROTARY_COPIES = 2 + 4


@dataclass(frozen=True)
class Need:
    """What a prompt and its answer take beside what is there: bytes by parts, and the tokens that make them."""

    tokens: int
    vision_tokens: int
    new_tokens: int
    weights: int
    cache: int
    vision: int
    prefill: int

    @property
    def total(self) -> int:
        """Vision and prefill come one after the other, so only the larger one counts."""
        return self.weights + self.cache + max(self.vision, self.prefill)


def weight_bytes(config: ModelConfig, dtype: str, adapters: Adapters = ()) -> int:
    """Bytes of all parameters, and of the factors of adapters that are used without merging."""
    h, inner, vision = config.hidden_size, config.intermediate_size, config.vision_config
    kv = config.num_key_value_heads * config.head_dim
    layer = 2 * h * h + 2 * h * kv + h + 2 * kv + 3 * h * inner + 2 * h
    head = config.vocab_size * h * (1 if config.tie_word_embeddings else 2)
    e, merged = vision.embed_dim, vision.embed_dim * vision.spatial_merge_size**2
    block = 4 * e * e + 4 * e + 2 * e * vision.intermediate_size + vision.intermediate_size + e + 4 * e
    tower = vision.patch_dim * e + vision.depth * block + 2 * e + merged * merged + merged + merged * h + h
    shapes = (shape for _, adapter in adapters for pair in adapter.shapes.values() for shape in pair)
    factors = sum(math.prod(shape) for shape in shapes)
    return (config.num_hidden_layers * layer + h + head + tower + factors) * ITEMSIZE[dtype]


def need(
    config: ModelConfig, prompt: Prompt, new_tokens: int, dtype: str, weights: int, held: tuple[int, int] = (0, 0)
) -> Need:
    """Estimate for one prompt and its answer.

    weights: bytes of them that are still to be loaded. held: tokens of the prompt that a cache has, and its capacity.
    """
    size, vision = ITEMSIZE[dtype], config.vision_config
    # Pictures, and groups of slices of a clip, are encoded one after the other; what comes of them stays.
    tokens, capacity = held
    fresh = len(prompt) - tokens
    visions = visions_behind(config, prompt, tokens) if tokens else prompt.visions
    groups = ((min(v.grid_thw[0], slices_at_once(v)), v.grid_thw[1], v.grid_thw[2]) for v in visions)
    patches = max((t * h * w for t, h, w in groups), default=0)
    vision_tokens = sum(v.tokens(vision) for v in visions)
    features = vision_tokens * config.hidden_size * size
    per_patch = _WIDTH_COPIES * vision.embed_dim + _MLP_COPIES * vision.intermediate_size
    per_token = _WIDTH_COPIES * config.hidden_size + _MLP_COPIES * config.intermediate_size
    # Queries and keys are turned together, in float32.
    patch_rotary = 4 * _ROTARY_COPIES * 2 * vision.embed_dim
    token_rotary = 4 * _ROTARY_COPIES * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    copies = (4 + size) * vision.patch_dim  # the patches on the device, and in the tower's dtype
    scores = 3 * SCORE_BYTES
    return Need(
        tokens=fresh,
        vision_tokens=vision_tokens,
        new_tokens=new_tokens,
        weights=weights,
        cache=_growth(config, capacity, len(prompt) + new_tokens, size),
        vision=patches * (per_patch * size + patch_rotary + copies) + 2 * features + scores if patches else 0,
        prefill=(len(prompt) - tokens) * (per_token * size + token_rotary)
        + features
        + scores
        + 2 * 4 * config.vocab_size,
    )


def _growth(config: ModelConfig, capacity: int, wanted: int, size: int) -> int:
    """What a cache takes to become larger: the difference, and while it does a copy of one of its tensors."""
    if wanted <= capacity:
        return 0
    copy = cache_bytes(config, capacity, size) // (2 * config.num_hidden_layers)
    return cache_bytes(config, wanted - capacity, size) + copy


def available_bytes() -> int:
    """Free memory of Paddle's current device; on a CPU within the limit of the container, if there is one."""
    device = paddle.device.get_device()
    if device.startswith("gpu"):
        index = int(device.partition(":")[2] or 0)
        total = int(paddle.device.cuda.get_device_properties(index).total_memory)
        return total - int(paddle.device.cuda.memory_allocated(index))
    return machine.free_memory()


def check_weights(config: ModelConfig, dtype: str, available: int, adapters: Adapters = ()) -> None:
    """Raise MemoryLimitError when the weights alone, with those of adapters, do not fit."""
    weights = weight_bytes(config, dtype, adapters)
    if weights > available:
        raise MemoryLimitError(
            f"the weights take {weights / GIB:.1f} GiB as {dtype}, {available / GIB:.1f} GiB are free; "
            "take a smaller model or a shorter dtype, or free some memory (--no-memory-check tries anyway)"
        )


def check(need: Need, available: int) -> None:
    """Raise MemoryLimitError, with tokens, bytes and what to set, when a run does not fit."""
    if need.total <= available:
        return
    weights = f"weights {need.weights / GIB:.2f}, " if need.weights else ""
    raise MemoryLimitError(
        f"this takes about {need.total / GIB:.2f} GiB, {available / GIB:.2f} GiB are free: {need.tokens} tokens "
        f"({need.vision_tokens} of them vision) and {need.new_tokens} new ones ({weights}cache {need.cache / GIB:.2f}, "
        f"vision {need.vision / GIB:.2f}, prefill {need.prefill / GIB:.2f} GiB); "
        f"lower {'--max-pixels, --max-frames or ' if need.vision_tokens else ''}--max-new-tokens "
        "(--no-memory-check tries anyway)"
    )


def peak_bytes() -> int:
    """The most memory taken so far: of the device on a GPU, of the process on a CPU."""
    device = paddle.device.get_device()
    if device.startswith("gpu"):
        return int(paddle.device.cuda.max_memory_allocated(int(device.partition(":")[2] or 0)))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
