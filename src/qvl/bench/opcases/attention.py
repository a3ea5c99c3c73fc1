"""Attention: over a prompt, behind a cache as it is stored, and in the vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import paddle

from qvl import ops
from qvl.bench.opcases.case import OpCase, Sizes, copies, normal

_CACHE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def varlen(sizes: Sizes) -> Iterator[OpCase]:
    heads, kv_heads, dim = _heads(sizes)
    for queries, keys in ((1, sizes.context), (sizes.tokens, sizes.tokens)):
        q = normal(queries, heads, dim)
        stored = 4 * 2 * keys * kv_heads * dim
        memories = [
            (normal(keys, kv_heads, dim, seed=n), normal(keys, kv_heads, dim, seed=n + 1))
            for n in range(copies(sizes, stored))
        ]
        calls = [partial(ops.varlen_attention, q, k, v, [(queries, keys)], causal=True) for k, v in memories]
        moved = stored + 4 * 2 * queries * heads * dim
        work = _operations(queries, keys, heads, dim)
        yield OpCase("attention", "causal", queries, f"{heads}/{kv_heads}x{dim}, {keys} keys", calls, moved, work)


def vision(sizes: Sizes) -> Iterator[OpCase]:
    tower = sizes.config.vision_config
    heads, dim, rows = tower.num_heads, tower.head_dim, sizes.patches
    qkv, angles = normal(rows, 3 * heads * dim), normal(rows, dim // 2, seed=1)
    cos, sin = ops.half_tables(angles)
    call = [partial(ops.vision_attention, qkv, cos, sin, heads, [rows])]
    moved, work = 4 * 4 * rows * heads * dim, 4 * rows * rows * heads * dim
    yield OpCase("vision_attention", "", rows, f"{heads}x{dim}", call, moved, work)


def rotary_store(sizes: Sizes) -> Iterator[OpCase]:
    for rows, projected, memory in _behind_a_cache(sizes, "float32"):
        _, kv_heads, dim = _heads(sizes)
        call = [partial(ops.rotary_store, projected, [memory], [rows])]
        moved = 4 * (2 * int(projected.q.size) + 2 * 2 * rows * kv_heads * dim)
        yield OpCase("rotary_store", "float32", rows, _shape(sizes), call, moved)


def cached(sizes: Sizes) -> Iterator[OpCase]:
    heads, kv_heads, dim = _heads(sizes)
    for stored in _CACHE_BYTES:
        for rows, projected, memory in _behind_a_cache(sizes, stored):
            keys = memory.start + rows
            kept = _CACHE_BYTES[stored] * 2 * keys * kv_heads * dim
            memories = [memory, *(_cache(sizes, keys, memory.start, stored) for _ in range(copies(sizes, kept) - 1))]
            calls = [partial(ops.cached_attention, projected, [memory], [rows]) for memory in memories]
            moved = kept + 4 * (2 * rows * heads * dim + 2 * rows * kv_heads * dim)
            work = _operations(rows, keys, heads, dim)
            yield OpCase("cached_attention", stored, rows, f"{_shape(sizes)}, {keys} keys", calls, moved, work)


def _behind_a_cache(sizes: Sizes, stored: str) -> Iterator[tuple[int, ops.Projected, ops.CacheRows]]:
    """One token behind a full context, then a prompt into an empty cache."""
    heads, kv_heads, dim = _heads(sizes)
    for rows, start in ((1, sizes.context - 1), (sizes.tokens, 0)):
        q, k, v = (normal(rows, n * dim, seed=n) for n in (heads, kv_heads, kv_heads))
        cos, sin = ops.half_tables(normal(rows, dim // 2))
        yield rows, ops.Projected(q, k, v, None, cos, sin), _cache(sizes, start + rows, start, stored)


def _cache(sizes: Sizes, capacity: int, start: int, stored: str) -> ops.CacheRows:
    """A cache filled with normal numbers, as it stores them."""
    _, kv_heads, dim = _heads(sizes)
    place = paddle.CPUPlace()
    keys, values = (paddle.zeros([capacity, kv_heads, dim], stored).to(place) for _ in range(2))
    scales = [paddle.zeros([capacity, kv_heads], "float32").to(place) if stored == "int8" else None for _ in range(2)]
    whole = ops.CacheRows(keys, values, scales[0], scales[1], 0)
    ops.store_rows(whole, normal(capacity, kv_heads, dim, seed=3), normal(capacity, kv_heads, dim, seed=4))
    return ops.CacheRows(keys, values, scales[0], scales[1], start)


def _heads(sizes: Sizes) -> tuple[int, int, int]:
    config = sizes.config
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


def _shape(sizes: Sizes) -> str:
    heads, kv_heads, dim = _heads(sizes)
    return f"{heads}/{kv_heads}x{dim}"


def _operations(queries: int, keys: int, heads: int, dim: int) -> int:
    """Of both products, without what a causal mask leaves out."""
    seen = queries * keys - queries * (queries - 1) // 2
    return 4 * seen * heads * dim
