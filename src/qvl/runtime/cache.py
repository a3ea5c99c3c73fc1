"""The keys and values of one sequence, in memory set aside before the first token."""

from __future__ import annotations

import paddle

from qvl.errors import QvlError
from qvl.model.config import ModelConfig


class KVCache:
    """Two tensors [capacity, kv_heads, head_dim] a layer. One sequence owns it; nothing is shared between prompts."""

    def __init__(self, config: ModelConfig, capacity: int, dtype: str) -> None:
        self.capacity = capacity
        shape = [capacity, config.num_key_value_heads, config.head_dim]
        layers = range(config.num_hidden_layers)
        self._keys = [paddle.empty(shape, dtype) for _ in layers]
        self._values = [paddle.empty(shape, dtype) for _ in layers]
        self._filled = [0 for _ in layers]

    def __len__(self) -> int:
        """Tokens stored by every layer."""
        return self._filled[-1]

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


def cache_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Memory of the cache of one sequence: 28 KiB a token for the 2B in 16 bits."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize * tokens
