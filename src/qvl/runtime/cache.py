"""The keys and values of one sequence, in memory set aside before its tokens come."""

from __future__ import annotations

import paddle

from qvl import ops
from qvl.errors import QvlError
from qvl.model.config import ModelConfig


class KVCache:
    """Two tensors [capacity, kv_heads, head_dim] a layer, filled from the front; keys are stored rotated.

    One sequence owns it; nothing is shared between prompts. Layers fill one after the other, so in the middle of a
    forward, or after one that was interrupted, they may differ by its tokens: `len` counts what all of them have.
    dtype: the model's, or one that takes less: bfloat16, or int8 with a scale for each token and head.
    memory: stands for the tensors; another object once it has grown, and they with it. dtype, head_dim: as stored.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: str) -> None:
        self.capacity = capacity
        self.memory = object()
        self._row = [config.num_key_value_heads, config.head_dim]
        layers = range(config.num_hidden_layers)
        self._keys = [paddle.empty([capacity, *self._row], dtype) for _ in layers]
        self._values = [paddle.empty([capacity, *self._row], dtype) for _ in layers]
        # An element of int8 is to be multiplied by that of its token and head.
        scaled = layers if dtype == "int8" else ()
        self._key_scales = [paddle.empty([capacity, self._row[0]], "float32") for _ in scaled]
        self._value_scales = [paddle.empty([capacity, self._row[0]], "float32") for _ in scaled]
        self._filled = [0 for _ in layers]

    def __len__(self) -> int:
        """Tokens stored by every layer."""
        return min(self._filled)

    @property
    def dtype(self) -> paddle.dtype:
        return self._keys[0].dtype

    @property
    def head_dim(self) -> int:
        return int(self._row[1])

    @property
    def untouched(self) -> int:
        """Bytes set aside on a CPU that the machine has not given yet: it does when they are first written to."""
        if not self._keys[0].place.is_cpu_place():
            return 0
        tensors = [*self._keys, *self._values, *self._key_scales, *self._value_scales]
        rows = sum(self.capacity - filled for filled in self._filled) // len(self._filled)
        return rows * sum(int(tensor.element_size()) * int(tensor.size) for tensor in tensors) // self.capacity

    def append(self, layer: int, k: paddle.Tensor, v: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Store [n, kv_heads, D] of the newest tokens in place; return everything stored so far, in k's dtype."""
        rows = self.claim(layer, k.shape[0])
        ops.store_rows(rows, k, v)
        return ops.load_rows(rows, self._filled[layer], k.dtype)

    def fill(self, tokens: int, dtype: str) -> None:
        """Store so many tokens of noise, for measurements: attention takes the same time whatever it reads."""
        for layer in range(len(self._keys)):
            self.append(layer, *(paddle.randn([tokens, *self._row]).astype(dtype) for _ in range(2)))

    def claim(self, layer: int, tokens: int) -> ops.CacheRows:
        """Count so many new tokens as stored, and give the memory they are to be written to."""
        start = self._filled[layer]
        if start + tokens > self.capacity:
            raise QvlError(f"the cache has room for {self.capacity} tokens, {start + tokens} were given")
        self._filled[layer] = start + tokens
        key_scales = self._key_scales[layer] if self._key_scales else None
        value_scales = self._value_scales[layer] if self._value_scales else None
        return ops.CacheRows(self._keys[layer], self._values[layer], key_scales, value_scales, start)

    def count(self, tokens: int) -> None:
        """Count so many new tokens as stored by every layer, which something else than `claim` has written."""
        if max(self._filled) + tokens > self.capacity:
            raise QvlError(f"the cache has room for {self.capacity} tokens, {max(self._filled) + tokens} were given")
        self._filled = [filled + tokens for filled in self._filled]

    def truncate(self, tokens: int) -> None:
        """Forget everything behind the first `tokens`. Costs nothing: what is forgotten is written over."""
        if not 0 <= tokens <= len(self):
            raise ValueError(f"the cache holds {len(self)} tokens and cannot keep {tokens}")
        self._filled = [tokens for _ in self._filled]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all and keep what is stored; a layer at a time, so memory peaks little."""
        if capacity <= self.capacity:
            return
        self.memory = object()  # before the first of them moves: growing may be broken off
        for tensors in (self._keys, self._values, self._key_scales, self._value_scales):
            for layer, old in enumerate(tensors):
                grown = paddle.empty([capacity, *old.shape[1:]], old.dtype)
                if self._filled[layer]:
                    grown[: self._filled[layer]] = old[: self._filled[layer]]
                tensors[layer] = grown
        self.capacity = capacity


# Bytes of an element, and of the scale that a head of a token has.
_SIZES = {"float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "int8": (1, 4)}


def cache_bytes(config: ModelConfig, tokens: int, dtype: str) -> int:
    """Memory of the cache of one sequence: 28 KiB a token for the 2B in 16 bits."""
    element, scale = _SIZES[dtype]
    row = config.num_key_value_heads * (config.head_dim * element + scale)
    return 2 * config.num_hidden_layers * row * tokens
