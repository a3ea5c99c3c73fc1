"""Attention of the native ops gives what the composed one gives, for any length, head count and storage."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import paddle
import pytest

from qvl import ops
from tests.unit.ops.levels import assert_close, both, each_level, normal, running

# float32 sums of up to some thousand weighted values, in another order.
EXACT = 1e-5
# heads, kv_heads, head size: those of the 2B, 7B and 72B, the tower's, and odd ones.
SHAPES = [(12, 2, 128), (28, 4, 128), (64, 8, 128), (16, 16, 80), (3, 1, 6), (4, 4, 20), (5, 1, 40), (2, 2, 256)]
SPANS: list[list[tuple[int, int]]] = [
    [(1, 1)],
    [(1, 7), (1, 300)],
    [(3, 3), (17, 400), (1, 33)],
    [(25, 25), (40, 41), (24, 256), (130, 513)],
]


@each_level
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spans", SPANS, ids=str)
def test_sequences_end_to_end(
    level: str, spans: list[tuple[int, int]], shape: tuple[int, int, int], causal: bool
) -> None:
    heads, kv_heads, dim = shape
    queries, keys = sum(n for n, _ in spans), sum(m for _, m in spans)
    q, k, v = normal(queries, heads, dim), normal(keys, kv_heads, dim, seed=1), normal(keys, kv_heads, dim, seed=2)
    assert_close(*both(level, lambda: ops.varlen_attention(q, k, v, spans, causal=causal)), EXACT)


@each_level
@pytest.mark.slow
def test_thousands_of_tokens(level: str) -> None:
    q, k, v = normal(2100, 12, 128), normal(3100, 2, 128, seed=1), normal(3100, 2, 128, seed=2)
    assert_close(*both(level, lambda: ops.varlen_attention(q, k, v, [(2100, 3100)], causal=True)), EXACT)


@each_level
def test_scores_far_apart_do_not_overflow(level: str) -> None:
    q, k, v = normal(40, 2, 16, scale=40), normal(300, 2, 16, seed=1, scale=40), normal(300, 2, 16, seed=2)
    # The scores are as large as 10^4, where float32 itself is right to about 10^-3.
    found, expected = both(level, lambda: ops.varlen_attention(q, k, v, [(40, 300)], causal=True))
    assert_close(found, expected, 5e-3)


@each_level
def test_not_a_number_is_not_hidden(level: str) -> None:
    q, k, v = normal(40, 2, 16), normal(40, 2, 16, seed=1), normal(40, 2, 16, seed=2)
    q[30, 1, 3] = float("nan")
    with running("native", level):
        found = ops.varlen_attention(q, k, v, [(40, 40)], causal=True).numpy()
        last = ops.varlen_attention(q[30:31], k, v, [(1, 40)], causal=True).numpy()
    assert np.isnan(found[30, 1]).all() and np.isnan(found).sum() == 16
    assert np.isnan(last[0, 1]).all() and np.isfinite(last[0, 0]).all()


@each_level
def test_slices_of_a_wider_tensor_need_no_copy(level: str) -> None:
    """q and k as they come out of one rotation, v from a projection of its own."""
    qk, v = normal(50, 8, 32), normal(50, 2, 32, seed=1)
    assert_close(
        *both(level, lambda: ops.varlen_attention(qk[:, :6], qk[:, 6:], v, [(20, 20), (30, 30)], causal=True)), EXACT
    )


@each_level
def test_threads_company_and_cuts_change_nothing(level: str) -> None:
    """A row gives the same bits on one thread or three, alone or with others, prefilled at once or in two parts."""
    q, k, v = normal(300, 12, 128), normal(300, 2, 128, seed=1), normal(300, 2, 128, seed=2)

    def prefilled(threads: int, *cuts: int) -> paddle.Tensor:
        with running("native", level, threads):
            edges = [0, *cuts, 300]
            parts = [
                ops.varlen_attention(q[first:last], k[:last], v[:last], [(last - first, last)], causal=True)
                for first, last in itertools.pairwise(edges)
            ]
            return paddle.concat(parts)

    whole = prefilled(1)
    assert bool((whole == prefilled(3)).all()) and bool((whole == prefilled(2, 37, 200)).all())

    def last(n: int, threads: int = 1) -> paddle.Tensor:
        """The last row, as one of n new tokens, with another sequence beside it."""
        with running("native", level, threads):
            keys, values = paddle.concat([k[:9], k]), paddle.concat([v[:9], v])
            queries = paddle.concat([q[:2], q[-n:]])
            return ops.varlen_attention(queries, keys, values, [(2, 9), (n, 300)], causal=True)[-1]

    alone = last(1)
    assert all(bool((alone == other).all()) for other in (last(1, 3), last(5), last(17, 2), last(24)))


VISION = [(16, 80, [1024]), (16, 80, [196, 64, 1, 130]), (4, 12, [4, 16]), (3, 10, [33])]


@each_level
@pytest.mark.parametrize(("heads", "dim", "lengths"), VISION, ids=str)
def test_the_vision_tower_by_slice(level: str, heads: int, dim: int, lengths: list[int]) -> None:
    rows = sum(lengths)
    qkv, tables = normal(rows, 3 * heads * dim), ops.half_tables(normal(rows, dim // 2, seed=1, scale=9))
    assert_close(*both(level, lambda: ops.vision_attention(qkv, *tables, heads, lengths)), EXACT)


def caches_of(storage: str, starts: list[int], kv_heads: int, dim: int, room: int = 70) -> list[ops.CacheRows]:
    """One cache for each of so many tokens, filled, with some room behind."""
    caches = []
    for number, start in enumerate(starts):
        shape = [start + room, kv_heads, dim]
        scales = [paddle.zeros(shape[:2]) if storage == "int8" else None for _ in range(2)]
        cache = ops.CacheRows(paddle.zeros(shape, storage), paddle.zeros(shape, storage), *scales, 0)
        if start:
            ops.store_rows(
                cache, normal(start, kv_heads, dim, seed=number), normal(start, kv_heads, dim, seed=number + 50)
            )
        caches.append(replace(cache, start=start))
    return caches


def projected(rows: int, heads: int, kv_heads: int, dim: int, *, joined: bool = False) -> ops.Projected:
    width, kv_width = heads * dim, kv_heads * dim
    parts = [normal(rows, width, seed=1), normal(rows, kv_width, seed=2), normal(rows, kv_width, seed=3)]
    biases = (normal(width, seed=4), normal(kv_width, seed=5), normal(kv_width, seed=6))
    tables = ops.half_tables(normal(rows, dim // 2, seed=7, scale=9))
    if joined:
        return ops.Projected(paddle.concat(parts, axis=-1), None, None, None, *tables)
    return ops.Projected(parts[0], parts[1], parts[2], biases, *tables)


# What one step of the storage is to numbers around 1: a stored element may be rounded the other way.
STEP = {"float32": EXACT, "bfloat16": 2.0**-8, "int8": 1 / 127}


def contents(cache: ops.CacheRows) -> list[paddle.Tensor]:
    return list(ops.load_rows(cache, cache.keys.shape[0], paddle.float32))


@each_level
@pytest.mark.parametrize("storage", list(STEP))
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("shape", [(12, 2, 128), (28, 4, 128), (64, 8, 128), (3, 1, 6), (4, 2, 20)], ids=str)
def test_caches_of_several_sequences(level: str, shape: tuple[int, int, int], joined: bool, storage: str) -> None:
    heads, kv_heads, dim = shape
    lengths, starts = [1, 1, 30, 4], [0, 700, 0, 255]

    def run() -> list[paddle.Tensor]:
        caches = caches_of(storage, starts, kv_heads, dim)
        out = ops.cached_attention(projected(36, heads, kv_heads, dim, joined=joined), caches, lengths)
        return [out, *(part for cache in caches for part in contents(cache))]

    (found, *found_caches), (expected, *expected_caches) = both(level, run)
    for one, other in zip(found_caches, expected_caches, strict=True):
        # Elements are up to some 6 in size, int8 has its step from the largest of 128.
        apart = np.abs(one.numpy() - other.numpy())
        assert apart.max() <= 8 * STEP[storage] and np.count_nonzero(apart > 8 * EXACT) <= apart.size // 1000
    # An element rounded the other way moves a row of the result by its share of it.
    assert_close(found, expected, EXACT if storage == "float32" else STEP[storage] / 4)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(12, 2, 128), (7, 1, 256), (3, 1, 6), (4, 2, 20)], ids=str)
def test_the_tile_unit_errs_by_its_rounding_only(shape: tuple[int, int, int], storage: str) -> None:
    """Rounding every operand to bfloat16, half of 2^-8 each, moves results by little more than one rounding."""
    with running("native") as module:
        if "amx" not in module.levels():
            pytest.skip("this CPU has no tile unit")
    heads, kv_heads, dim = shape
    lengths, starts = [33, 1, 200, 70], [0, 700, 95, 300]

    def run(impl: ops.AttentionImpl) -> paddle.Tensor:
        caches = caches_of(storage, starts, kv_heads, dim, room=200)
        return ops.cached_attention(projected(304, heads, kv_heads, dim), caches, lengths, impl=impl)

    with running("native", "amx"):
        found, exact = run("rounded"), run("composed")
    with running("composed"):
        assert_close(exact, run("rounded"), EXACT if storage == "float32" else STEP[storage] / 4)
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < 2.0**-7


@pytest.mark.parametrize(("heads", "dim", "lengths"), VISION, ids=str)
def test_the_vision_tower_on_the_tile_unit(heads: int, dim: int, lengths: list[int]) -> None:
    rows = sum(lengths)
    qkv, tables = normal(rows, 3 * heads * dim), ops.half_tables(normal(rows, dim // 2, seed=1, scale=9))
    with running("native") as module:
        if "amx" not in module.levels():
            pytest.skip("this CPU has no tile unit")
    with running("native", "amx"):
        found = ops.vision_attention(qkv, *tables, heads, lengths, impl="rounded")
        exact = ops.vision_attention(qkv, *tables, heads, lengths)
    assert float((found - exact).norm() / exact.norm()) < 2.0**-7


@each_level
def test_rotated_queries_and_new_rows_of_the_cache(level: str) -> None:
    def run() -> list[paddle.Tensor]:
        caches = caches_of("float32", [3, 0], 2, 12)
        return [ops.rotary_store(projected(9, 6, 2, 12), caches, [4, 5]), *contents(caches[0]), *contents(caches[1])]

    for one, other in zip(*both(level, run), strict=True):
        assert_close(one, other, EXACT)


def test_what_does_not_fit_is_named() -> None:
    with running("native") as module:
        q, k = normal(4, 2, 8), normal(4, 2, 8)
        with pytest.raises(ValueError, match=r"attention: k has shape \[4, 2, 6\], \[any, any, 8\] is needed"):
            module.attention(q, normal(4, 2, 6), k, [(4, 4)], True)
        with pytest.raises(ValueError, match="attention: v must be float32"):
            module.attention(q, k, k.astype("float64"), [(4, 4)], True)
        with pytest.raises(ValueError, match="attention: spans must add up to 4 queries and 4 keys, not to 4 and 5"):
            module.attention(q, k, k, [(4, 5)], True)
        with pytest.raises(ValueError, match="attention: spans has 4 queries for 3 keys"):
            module.attention(q, k, k, [(4, 3)], True)
        with pytest.raises(ValueError, match="attention: k has 2 heads of keys, of which 3 heads"):
            module.attention(normal(4, 3, 8), k, k, [(4, 4)], True)
        tables = ops.half_tables(normal(4, 4))
        with pytest.raises(ValueError, match="vision_attention: lengths must add up to 4, not to 3"):
            module.vision_attention(normal(4, 48), *tables, 2, [3])
        with pytest.raises(ValueError, match=r"vision_attention: cos has shape \[4, 4\], \[4, 8\] is needed"):
            module.vision_attention(normal(4, 48), *tables, 1, [4])
        caches = caches_of("float32", [0], 2, 8)
        with pytest.raises(ValueError, match="cached_attention: caches has room for 70 tokens, not for 90 behind 0"):
            ops.cached_attention(projected(90, 2, 2, 8), caches, [90])
        with pytest.raises(ValueError, match="cached_attention: caches must take as many new rows as q has; 2 are"):
            ops.cached_attention(projected(6, 2, 2, 8), caches, [4])
        with pytest.raises(ValueError, match="rotary_store: key_scales are for int8"):
            ops.rotary_store(projected(4, 2, 2, 8), [replace(caches[0], key_scales=normal(70, 2))], [4])
