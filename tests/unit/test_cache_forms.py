"""What a cache keeps, in each form it can keep it in."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from qvl import ops
from qvl.errors import QvlError
from qvl.hub.random_checkpoint import TINY
from qvl.ops import native
from qvl.runtime.cache import KVCache
from tests.unit.ops.levels import LEVELS, normal, running

HEADS, DIM = TINY.num_key_value_heads, TINY.head_dim


def rows(count: int, seed: int) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=[count, HEADS, DIM]).astype(np.float32))


@pytest.mark.parametrize(("dtype", "step"), [("float32", 0.0), ("bfloat16", 2.0**-8), ("int8", 0.5 / 127)])
def test_tokens_come_back_within_the_rounding_of_their_form(dtype: str, step: float) -> None:
    with paddle.no_grad(), native.using("composed"):
        cache = KVCache(TINY, 12, dtype)
        first, second = rows(5, 0), rows(3, 1)
        for layer in range(TINY.num_hidden_layers):
            cache.append(layer, first, -first)
            keys, values = cache.append(layer, second, -second)
        assert len(cache) == 8
        expected = np.concatenate([first.numpy(), second.numpy()])
        # bfloat16 errs by a share of the number, int8 by one of the largest number of its head and token.
        size = np.abs(expected) if dtype == "bfloat16" else np.abs(expected).max(axis=-1, keepdims=True)
        assert keys.dtype == values.dtype == paddle.float32
        assert (np.abs(keys.numpy() - expected) <= step * size * 1.001).all()
        np.testing.assert_array_equal(values.numpy(), -keys.numpy())


def test_more_tokens_than_there_is_room_for_are_refused() -> None:
    cache = KVCache(TINY, 4, "float32")
    cache.claim(0, 3)
    with pytest.raises(QvlError, match="room for 4 tokens, 5 were given"):
        cache.claim(0, 2)


def test_growing_keeps_what_is_stored_in_every_form() -> None:
    with paddle.no_grad(), native.using("composed"):
        for dtype in ("float32", "bfloat16", "int8"):
            cache = KVCache(TINY, 5, dtype)
            before = [
                cache.append(layer, rows(4, layer), rows(4, layer + 9)) for layer in range(TINY.num_hidden_layers)
            ]
            cache.reserve(40)
            cache.truncate(3)
            for layer, (keys, values) in enumerate(before):
                grown = cache.append(layer, rows(1, 5), rows(1, 6))
                np.testing.assert_array_equal(grown[0][:3].numpy(), keys[:3].numpy())
                np.testing.assert_array_equal(grown[1][:3].numpy(), values[:3].numpy())


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("body", ["composed", *LEVELS])
def test_what_is_no_number_comes_back_as_none(body: str, odd: float) -> None:
    """Of int8 codes none could hold it: it spoils its head, and is not taken for some number."""
    q, k, v = (normal(1, width, seed=i) for i, width in enumerate([2 * HEADS * DIM, HEADS * DIM, HEADS * DIM]))
    k[0, 3], v[0, DIM - 1] = odd, odd
    cos, sin = ops.half_tables(normal(1, DIM // 2, seed=3))
    with running("composed" if body == "composed" else "native", None if body == "composed" else body):
        cache = KVCache(TINY, 4, "int8")
        joined = paddle.concat([q, k, v], axis=-1)
        ops.rotary_store(ops.Projected(joined, None, None, None, cos, sin), [cache.claim(0, 1)], [1])
        keys, values = ops.load_rows(cache.claim(0, 0), 1, paddle.float32)
        for kept in (keys, values):
            assert not np.isfinite(kept.numpy()[0, 0]).any() and np.isfinite(kept.numpy()[0, 1:]).all()
