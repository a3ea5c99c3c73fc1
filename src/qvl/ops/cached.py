"""Attention with a cache, from the rows of the projections on: bias, rotary, cache write and attention as one op.

A cache keeps keys and values in float32, in bfloat16, or in int8 with a scale for each token and head; on a GPU in the
model's own type or int8. How many tokens a cache holds is also told there in the device's memory, where a CUDA graph
reads it anew at every replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle

from qvl.ops.attention import AttentionImpl, varlen_attention
from qvl.ops.bodies import gpu_for, module_for
from qvl.ops.cuda_body import Body
from qvl.ops.rotary import apply_rotary, spread

# What int8 holds to each side of 0.
_MOST = 127.0
# Pieces of new tokens that decoding's attention on a GPU takes for a sequence, each of which reads the whole cache: the
# longest draft with its token are two, a short question in a conversation a few more.
_MOST_PIECES = 4
Biases = tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]


@dataclass(frozen=True, eq=False)
class CacheRows:
    """The memory of one layer's cache, of which the rows from `start` on are to be written.

    keys, values: [capacity, kv_heads, D] in float32, bfloat16 or int8. key_scales, value_scales: float32
    [capacity, kv_heads] for int8, what an element is to be multiplied by; else None.
    """

    keys: paddle.Tensor
    values: paddle.Tensor
    key_scales: paddle.Tensor | None
    value_scales: paddle.Tensor | None
    start: int


@dataclass(frozen=True, eq=False)
class Projected:
    """Rows of the q, k and v projections, as one or as three, and what the projections have not added.

    q: [N, heads * D]; k, v: [N, kv_heads * D]; or k and v None, and all three side by side in q. biases: of q, k and v,
    flat, or None when they are in already. cos, sin: float32 [N, D/2] of `ops.half_tables`. starts: of each sequence,
    int32 on the device, see `starts_of`; None: they are put there at this call.
    """

    q: paddle.Tensor
    k: paddle.Tensor | None
    v: paddle.Tensor | None
    biases: Biases | None
    cos: paddle.Tensor
    sin: paddle.Tensor
    starts: paddle.Tensor | None = None


def starts_of(held: Sequence[int]) -> paddle.Tensor:
    """`Projected.starts` for caches that hold so many tokens."""
    return paddle.to_tensor(np.asarray(held, np.int32))


def reads_starts(dtype: paddle.dtype, kept: paddle.dtype, head_dim: int) -> bool:
    """Whether a GPU's body takes queries of `dtype` and a cache that keeps `kept`. It reads from the device how many
    tokens a cache holds; the composed ops have that from the host, so what was captured of them says it for ever.
    """
    return head_dim % 16 == 0 and head_dim <= 256 and kept in (dtype, paddle.int8)


def cached_attention(
    x: Projected, caches: Sequence[CacheRows], lengths: Sequence[int], *, impl: AttentionImpl = "composed"
) -> paddle.Tensor:
    """Turn queries and keys, store keys and values, and let each sequence attend to all of its own cache.

    lengths: new tokens of each sequence, which lie end to end and add up to N. Causal. Returns [N, heads * D].
    Raises ValueError when sizes disagree, dtypes do, or a cache has no room.
    """
    module = module_for(x.q, x.cos)
    if module is not None:
        return module.cached_attention(*_native(x, caches, lengths), impl == "rounded")
    gpu = _gpu_for(x, caches)
    if gpu is not None and max(lengths) <= _MOST_PIECES * gpu.most_queries:
        return _decoded(gpu, x, caches, lengths)
    q = rotary_store(x, caches, lengths)
    outputs = []
    start = 0
    for n, cache in zip(lengths, caches, strict=True):
        keys, values = load_rows(cache, cache.start + n, q.dtype)
        outputs.append(
            varlen_attention(q[start : start + n], keys, values, [(n, cache.start + n)], causal=True, impl=impl)
        )
        start += n
    return paddle.concat(outputs, axis=0).reshape([q.shape[0], -1])


def rotary_store(x: Projected, caches: Sequence[CacheRows], lengths: Sequence[int]) -> paddle.Tensor:
    """The first half of `cached_attention`: returns the turned queries [N, heads, D]."""
    module = module_for(x.q, x.cos)
    if module is not None:
        return module.rotary_store(*_native(x, caches, lengths))
    gpu = _gpu_for(x, caches)
    if gpu is not None:
        return _stored(gpu, x, _rows(caches, lengths), _starts(x, caches))
    kv_heads, dim = caches[0].keys.shape[1:]
    q, k, v = _split(x, kv_heads * dim)
    q = _turned(q, x, dim)
    k = _turned(k, x, dim)
    v = v.reshape([v.shape[0], kv_heads, dim])
    start = 0
    for n, cache in zip(lengths, caches, strict=True):
        store_rows(cache, k[start : start + n], v[start : start + n])
        start += n
    return q


def store_rows(cache: CacheRows, k: paddle.Tensor, v: paddle.Tensor) -> None:
    """Write [n, kv_heads, D] of the newest tokens into the cache, as it stores them."""
    rows = slice(cache.start, cache.start + k.shape[0])
    for tensor, scales, x in ((cache.keys, cache.key_scales, k), (cache.values, cache.value_scales, v)):
        if scales is None:
            tensor[rows] = x if x.dtype == tensor.dtype else x.astype(tensor.dtype)
        else:
            tensor[rows], scales[rows] = quantize_rows(x)


def load_rows(cache: CacheRows, stop: int, dtype: paddle.dtype) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Keys and values [stop, kv_heads, D] of everything before `stop`: views where they are stored in that dtype."""

    def loaded(tensor: paddle.Tensor, scales: paddle.Tensor | None) -> paddle.Tensor:
        rows = tensor[:stop]
        if rows.dtype != dtype:
            rows = rows.astype(dtype)
        return rows if scales is None else rows * scales[:stop].unsqueeze(-1).astype(dtype)

    return loaded(cache.keys, cache.key_scales), loaded(cache.values, cache.value_scales)


def quantize_rows(x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """x [n, heads, D] as int8 and float32 [n, heads], with the largest of each head of a token at 127."""
    wide = x.astype("float32")
    scales = wide.abs().max(axis=-1) / _MOST
    inverse = paddle.where(scales > 0, 1.0 / scales, paddle.zeros_like(scales))
    return paddle.round(wide * inverse.unsqueeze(-1)).astype("int8"), scales


def _gpu_for(x: Projected, caches: Sequence[CacheRows]) -> Body | None:
    """The body of a GPU, where it takes heads of this size and what these caches keep."""
    keys, biases = caches[0].keys, x.biases or ()
    if not reads_starts(x.q.dtype, keys.dtype, keys.shape[2]):
        return None
    return gpu_for(*(part for part in (x.q, x.k, x.v, *biases) if part is not None))


def _stored(gpu: Body, x: Projected, rows: list[tuple[Any, ...]], starts: paddle.Tensor) -> paddle.Tensor:
    return gpu.rotary_store(x.q, x.k, x.v, x.biases or (None, None, None), x.cos, x.sin, _heads(x, rows), rows, starts)


def _decoded(gpu: Body, x: Projected, caches: Sequence[CacheRows], lengths: Sequence[int]) -> paddle.Tensor:
    """`cached_attention` for few new tokens a sequence, by the body of a GPU."""
    starts = _starts(x, caches)
    q = _stored(gpu, x, _rows(caches, lengths), starts)
    keys = max(cache.start + n for cache, n in zip(caches, lengths, strict=True))
    if max(lengths) > gpu.most_queries:
        # Keys are stored, so a piece of a sequence is one that holds what comes before it.
        caches, lengths = _in_pieces(caches, lengths, gpu.most_queries)
        starts = starts_of([cache.start for cache in caches])
    return gpu.attention(q, _rows(caches, lengths), starts, keys)


def _in_pieces(caches: Sequence[CacheRows], lengths: Sequence[int], most: int) -> tuple[list[CacheRows], list[int]]:
    pieces = [
        (replace(cache, start=cache.start + first), min(most, n - first))
        for cache, n in zip(caches, lengths, strict=True)
        for first in range(0, n, most)
    ]
    return [cache for cache, _ in pieces], [n for _, n in pieces]


def _starts(x: Projected, caches: Sequence[CacheRows]) -> paddle.Tensor:
    return starts_of([cache.start for cache in caches]) if x.starts is None else x.starts


def _native(x: Projected, caches: Sequence[CacheRows], lengths: Sequence[int]) -> tuple[Any, ...]:
    """The arguments of the native functions of a CPU."""
    rows = _rows(caches, lengths)
    kv_heads = caches[0].keys.shape[1]
    return x.q, x.k, x.v, x.biases or (None, None, None), x.cos, x.sin, _heads(x, rows), kv_heads, rows


def _rows(caches: Sequence[CacheRows], lengths: Sequence[int]) -> list[tuple[Any, ...]]:
    """Caches as native functions take them."""
    return [
        (cache.keys, cache.values, cache.key_scales, cache.value_scales, cache.start, n)
        for n, cache in zip(lengths, caches, strict=True)
    ]


def _heads(x: Projected, rows: list[tuple[Any, ...]]) -> int:
    """Of the queries."""
    kv_heads, dim = rows[0][0].shape[1:]
    return int(x.q.shape[1] // dim - (2 * kv_heads if x.k is None else 0))


def _split(x: Projected, kv_width: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    q, k, v = x.q, x.k, x.v
    if k is None or v is None:
        q, k, v = paddle.split(q, [q.shape[1] - 2 * kv_width, kv_width, kv_width], axis=-1)
    if x.biases is None:
        return q, k, v
    return q + x.biases[0], k + x.biases[1], v + x.biases[2]


def _turned(x: paddle.Tensor, tables: Projected, dim: int) -> paddle.Tensor:
    x = x.reshape([x.shape[0], -1, dim])
    return apply_rotary(x, *spread(tables.cos, tables.sin, x.shape[1]))
