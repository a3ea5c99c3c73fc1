"""The keys and values of one sequence, in memory set aside before its tokens come."""

from __future__ import annotations

import paddle

from qvl.errors import QvlError
from qvl.model.config import ModelConfig


class KVCache:
    """Two tensors [capacity, kv_heads, head_dim] a layer, filled from the front; keys are stored rotated.

    One sequence owns it; nothing is shared between prompts. Layers fill one after the other, so in the middle of a
    forward, or after one that was interrupted, they may differ by its tokens: `len` counts what all of them have.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: str) -> None:
        self.capacity = capacity
        self._dtype = dtype
        self._row = [config.num_key_value_heads, config.head_dim]
        layers = range(config.num_hidden_layers)
        self._keys = [paddle.empty([capacity, *self._row], dtype) for _ in layers]
        self._values = [paddle.empty([capacity, *self._row], dtype) for _ in layers]
        self._filled = [0 for _ in layers]

    def __len__(self) -> int:
        """Tokens stored by every layer."""
        return min(self._filled)

    @property
    def untouched(self) -> int:
        """Bytes set aside on a CPU that the machine has not given yet: it does when they are first written to."""
        if not self._keys[0].place.is_cpu_place():
            return 0
        tensors = 2 * len(self._keys)
        rows = sum(self.capacity - filled for filled in self._filled) // len(self._filled)
        return tensors * rows * self._row[0] * self._row[1] * int(self._keys[0].element_size())

    def append(self, layer: int, k: paddle.Tensor, v: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Store [n, kv_heads, D] of the newest tokens in place; return views of everything stored so far."""
        start = self._filled[layer]
        stop = start + k.shape[0]
        if stop > self.capacity:
            raise QvlError(f"the cache has room for {self.capacity} tokens, {stop} were given")
        keys, values = self._keys[layer], self._values[layer]
        keys[start:stop] = k
        values[start:stop] = v
        self._filled[layer] = stop
        return keys[:stop], values[:stop]

    def truncate(self, tokens: int) -> None:
        """Forget everything behind the first `tokens`. Costs nothing: what is forgotten is written over."""
        if not 0 <= tokens <= len(self):
            raise ValueError(f"the cache holds {len(self)} tokens and cannot keep {tokens}")
        self._filled = [tokens for _ in self._filled]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all and keep what is stored; a layer at a time, so memory peaks little."""
        if capacity <= self.capacity:
            return
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                grown = paddle.empty([capacity, *self._row], self._dtype)
                if self._filled[layer]:
                    grown[: self._filled[layer]] = old[: self._filled[layer]]
                tensors[layer] = grown
        self.capacity = capacity


def cache_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Memory of the cache of one sequence: 28 KiB a token for the 2B in 16 bits."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize * tokens
