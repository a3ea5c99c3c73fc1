"""How much memory a run will take, by parts, and how much there is."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle
import psutil

from qvl import machine
from qvl.errors import MemoryLimitError, QvlError
from qvl.model.adapter import Adapter
from qvl.model.adapter_config import AdapterRequest
from qvl.model.config import ModelConfig
from qvl.model.part import Part
from qvl.model.quantization import Quantization, matrix_shapes
from qvl.model.shapes import parameter_shapes
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
_SHORTAGE = re.compile("out of memory|ResourceExhausted|bad_alloc|Cannot allocate memory|ALLOC_FAILED", re.IGNORECASE)


@dataclass(frozen=True)
class Held:
    """The cache that a prompt goes to: its dtype, how many tokens of the prompt it has, and its capacity."""

    dtype: str
    tokens: int = 0
    capacity: int = 0


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


def weight_bytes(
    config: ModelConfig,
    dtype: str,
    adapters: Adapters = (),
    quantization: Quantization | None = None,
    parts: int = 1,
) -> int:
    """Bytes of all parameters, and of the factors of adapters that are used without merging; of a split model those of
    one of its parts.
    """
    part = Part(0, parts)
    matrices = matrix_shapes(config) if quantization is not None else {}
    total = 0
    for name, shape in parameter_shapes(config).items():
        scheme = quantization.scheme_of(name) if quantization is not None and name in matrices else None
        if scheme is None:
            total += part.held(name, shape, config) * ITEMSIZE[dtype]
        else:
            arrays = scheme.packing().shapes(*matrices[name]).values()
            total += sum(math.prod(size) * np.dtype(kind).itemsize for size, kind in arrays)
    shapes = (shape for _, adapter in adapters for pair in adapter.shapes.values() for shape in pair)
    return total + sum(math.prod(shape) for shape in shapes) * ITEMSIZE[dtype]


def need(
    config: ModelConfig, prompt: Prompt, new_tokens: int, dtype: str, weights: int, held: Held | None = None
) -> Need:
    """Estimate for one prompt and its answer. weights: bytes of them that are still to be loaded."""
    held = held or Held(dtype)
    size, vision = ITEMSIZE[dtype], config.vision_config
    # Pictures, and groups of slices of a clip, are encoded one after the other; what comes of them stays.
    tokens = held.tokens
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
        cache=_growth(config, held, len(prompt) + new_tokens),
        vision=patches * (per_patch * size + patch_rotary + copies) + 2 * features + scores if patches else 0,
        prefill=(len(prompt) - tokens) * (per_token * size + token_rotary)
        + features
        + scores
        + 2 * 4 * config.vocab_size,
    )


def _growth(config: ModelConfig, held: Held, wanted: int) -> int:
    """What a cache takes to become larger: the difference, and while it does a copy of one of its tensors."""
    if wanted <= held.capacity:
        return 0
    copy = cache_bytes(config, held.capacity, held.dtype) // (2 * config.num_hidden_layers)
    return cache_bytes(config, wanted - held.capacity, held.dtype) + copy


def available_bytes() -> int:
    """Free memory of Paddle's current device; on a CPU within the limit of the container, if there is one.

    Of a GPU it is what no process has taken, and what Paddle has taken and is not using.
    """
    device = paddle.device.get_device()
    if device.startswith("gpu"):
        index = int(device.partition(":")[2] or 0)
        free, _ = paddle.cuda.mem_get_info(index)
        unused = paddle.device.cuda.memory_reserved(index) - paddle.device.cuda.memory_allocated(index)
        return int(free) + int(unused)
    return machine.free_memory()


def check_weights(
    config: ModelConfig,
    dtype: str,
    available: int,
    adapters: Adapters = (),
    quantization: Quantization | None = None,
    parts: int = 1,
) -> None:
    """Raise MemoryLimitError when the weights alone, with those of adapters, do not fit."""
    weights = weight_bytes(config, dtype, adapters, quantization, parts)
    if weights > available:
        kind = dtype if quantization is None else quantization.width
        shorter = "" if kind == "int4" else " or fewer bits (--quant)"
        raise MemoryLimitError(
            f"the weights take {weights / GIB:.1f} GiB as {kind}, {available / GIB:.1f} GiB are free; "
            f"take a smaller model{shorter}, or free some memory (--no-memory-check tries anyway)"
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


def is_shortage(error: BaseException) -> bool:
    """Whether an error that nobody of us raised says that there was not enough memory.

    Paddle says so by several types, and a library that it calls, such as cuBLAS, in words of its own.
    """
    if isinstance(error, QvlError):
        return False
    return isinstance(error, MemoryError) or _SHORTAGE.search(str(error)) is not None


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
