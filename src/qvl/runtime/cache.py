"""The keys and values of one sequence, in memory set aside before the first token."""

from __future__ import annotations

import paddle

from qvl import ops
from qvl.errors import QvlError
from qvl.model.config import ModelConfig


class KVCache:
    """Two tensors [capacity, kv_heads, head_dim] a layer. One sequence owns it; nothing is shared between prompts.

    dtype: the model's, or one that takes less: bfloat16, or int8 with a scale for each token and head.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: str) -> None:
        self.capacity = capacity
        shape = [capacity, config.num_key_value_heads, config.head_dim]
        layers = range(config.num_hidden_layers)
        self._keys = [paddle.empty(shape, dtype) for _ in layers]
        self._values = [paddle.empty(shape, dtype) for _ in layers]
        # An element of int8 is to be multiplied by that of its token and head.
        self._scales = [
            (paddle.empty(shape[:2], "float32"), paddle.empty(shape[:2], "float32")) for _ in layers if dtype == "int8"
        ]
        self._filled = [0 for _ in layers]

    def __len__(self) -> int:
        """Tokens stored by every layer."""
        return self._filled[-1]

    def append(self, layer: int, k: paddle.Tensor, v: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Store [n, kv_heads, D] of the newest tokens in place; return everything stored so far, in k's dtype."""
        rows = self.claim(layer, k.shape[0])
        ops.store_rows(rows, k, v)
        return ops.load_rows(rows, self._filled[layer], k.dtype)

    def claim(self, layer: int, tokens: int) -> ops.CacheRows:
        """Count so many new tokens as stored, and give the memory they are to be written to."""
        start = self._filled[layer]
        if start + tokens > self.capacity:
            raise QvlError(f"the cache has room for {self.capacity} tokens, {start + tokens} were given")
        self._filled[layer] = start + tokens
        key_scales, value_scales = self._scales[layer] if self._scales else (None, None)
        return ops.CacheRows(self._keys[layer], self._values[layer], key_scales, value_scales, start)


def cache_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Memory of the cache of one sequence: 28 KiB a token for the 2B in 16 bits."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize * tokens
