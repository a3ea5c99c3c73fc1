"""The cache of keys and values, and attention of several new tokens to what it holds."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from qvl import ops
from qvl.errors import QvlError
from qvl.hub.random_checkpoint import TINY
from qvl.ops import attention
from qvl.runtime.cache import KVCache

LAYERS = range(TINY.num_hidden_layers)


def rows(first: int, count: int) -> paddle.Tensor:
    """Recognisable keys: all numbers of a token's are its number."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return paddle.to_tensor(np.broadcast_to(numbers[:, None, None], (count, 2, 16)).copy())


def fill(cache: KVCache, first: int, count: int) -> list[int]:
    """Store tokens in every layer; the numbers of all that the last layer then has."""
    for layer in LAYERS:
        keys, values = cache.append(layer, rows(first, count), -rows(first, count))
        assert (keys == -values).all()
    return [int(number) for number in keys[:, 0, 0].numpy()]


def test_what_is_cut_off_is_written_over() -> None:
    cache = KVCache(TINY, 8, "float32")
    assert fill(cache, 0, 5) == [0, 1, 2, 3, 4]
    cache.truncate(2)
    assert len(cache) == 2
    assert fill(cache, 70, 3) == [0, 1, 70, 71, 72]
    cache.truncate(0)
    assert fill(cache, 9, 1) == [9]
    with pytest.raises(ValueError, match="holds 1 tokens and cannot keep 2"):
        cache.truncate(2)


def test_a_larger_cache_keeps_what_it_holds() -> None:
    cache = KVCache(TINY, 3, "float32")
    fill(cache, 0, 3)
    with pytest.raises(QvlError, match="room for 3 tokens, 4 were given"):
        fill(cache, 3, 1)
    cache.reserve(6)
    cache.reserve(4)
    assert cache.capacity == 6 and fill(cache, 3, 3) == [0, 1, 2, 3, 4, 5]
    empty = KVCache(TINY, 1, "float32")
    empty.reserve(2)
    assert len(empty) == 0 and fill(empty, 5, 2) == [5, 6]


def test_a_forward_that_was_broken_off_holds_what_every_layer_has() -> None:
    cache = KVCache(TINY, 8, "float32")
    fill(cache, 0, 2)
    cache.append(0, rows(2, 3), rows(2, 3))
    assert len(cache) == 2
    cache.truncate(2)
    assert fill(cache, 40, 1) == [0, 1, 40]


@pytest.mark.parametrize(("new", "held"), [(1, 9), (2, 9), (17, 40), (9, 0), (70, 33)])
def test_new_tokens_see_what_is_held_and_each_other_in_order(
    monkeypatch: pytest.MonkeyPatch, new: int, held: int
) -> None:
    monkeypatch.setattr(attention, "SCORE_BYTES", 4 * 8 * 24 * 50)  # blocks of 24 queries and fewer
    random = np.random.default_rng(0)
    shapes = ((new, 8, 16), (held + new, 2, 16), (held + new, 2, 16))
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    out = ops.varlen_attention(*map(paddle.to_tensor, (q, k, v)), [(new, held + new)], causal=True).numpy()
    for n in range(new):
        seen = held + n + 1
        scores = np.einsum("hd,mhd->hm", q[n], np.repeat(k[:seen], 4, axis=1)) / 4
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        expected = np.einsum("hm,mhd->hd", weights, np.repeat(v[:seen], 4, axis=1))
        np.testing.assert_allclose(out[n], expected, rtol=0, atol=1e-5)
