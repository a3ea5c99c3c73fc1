"""Attention that learns gives the gradients of its composed body: causal and full, with shared heads, by slice."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from qvl import ops
from qvl.ops import native
from tests.unit.ops.levels import each_level, normal
from tests.unit.ops.slopes import Op, assert_slopes, identical, learning, needs_native, slopes

# heads, kv_heads, head size: groups of 1 to 7, the sizes of the models, and odd ones.
SHAPES = [(6, 3, 32), (4, 4, 64), (14, 2, 128), (2, 2, 80), (3, 1, 6), (5, 1, 20), (2, 1, 256), (12, 2, 16)]
SPANS: list[list[tuple[int, int]]] = [
    [(1, 1)],
    [(7, 7), (1, 1), (131, 131)],
    [(3, 40), (1, 300), (30, 30)],
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
    inputs = learning(
        normal(queries, heads, dim), normal(keys, kv_heads, dim, seed=1), normal(keys, kv_heads, dim, seed=2)
    )
    assert_slopes(level, lambda q, k, v: ops.varlen_attention(q, k, v, spans, causal=causal), inputs)


@each_level
@pytest.mark.parametrize("causal", [True, False])
def test_keys_cut_for_several_tasks(level: str, causal: bool) -> None:
    inputs = learning(normal(1100, 3, 32), normal(1300, 1, 32, seed=1), normal(1300, 1, 32, seed=2))
    spans = [(600, 800), (500, 500)]
    assert_slopes(level, lambda q, k, v: ops.varlen_attention(q, k, v, spans, causal=causal), inputs)


def rotary(heads: int, kv_heads: int, dim: int, lengths: list[int]) -> tuple[Op, list[paddle.Tensor]]:
    """The op of the language model and its inputs, the projections."""
    n = sum(lengths)
    cos, sin = ops.half_tables(normal(n, dim // 2, seed=8, scale=9))
    widths = heads * dim, kv_heads * dim, kv_heads * dim
    inputs = learning(*(normal(n, width, seed=i) for i, width in enumerate(widths)))
    return lambda q, k, v: ops.rotary_attention((q, k, v), cos, sin, dim, lengths), inputs


@each_level
@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((12, 2, 128), [33, 1, 200]), ((6, 3, 32), [17] * 9), ((7, 1, 10), [50]), ((2, 2, 8), [700])],
    ids=str,
)
def test_from_the_projections_on(level: str, shape: tuple[int, int, int], lengths: list[int]) -> None:
    assert_slopes(level, *rotary(*shape, lengths))


@each_level
@pytest.mark.parametrize(
    ("heads", "dim", "lengths"), [(16, 80, [196, 64, 1]), (4, 12, [4, 16]), (3, 10, [333])], ids=str
)
def test_the_vision_tower_by_slice(level: str, heads: int, dim: int, lengths: list[int]) -> None:
    rows = sum(lengths)
    cos, sin = ops.half_tables(normal(rows, dim // 2, seed=1, scale=9))
    inputs = learning(normal(rows, 3 * heads * dim))
    assert_slopes(level, lambda qkv: ops.vision_attention(qkv, cos, sin, heads, lengths), inputs)


@each_level
def test_finite_differences_in_float64(level: str) -> None:
    """Of attention written down here, in NumPy."""
    heads, kv_heads, dim, n, m = 2, 1, 4, 3, 5
    inputs = learning(normal(n, heads, dim), normal(m, kv_heads, dim, seed=1), normal(m, kv_heads, dim, seed=2))
    push = normal(n, heads, dim, seed=90).numpy().astype(np.float64)

    def value(arrays: list[np.ndarray]) -> float:
        q, k, v = arrays
        scores = np.einsum("nhd,md->nhm", q, k[:, 0]) / np.sqrt(dim)
        hidden = np.arange(m)[None, :] > np.arange(m - n, m)[:, None]
        weights = np.exp(np.where(hidden[:, None, :], -np.inf, scores))
        weights /= weights.sum(axis=-1, keepdims=True)
        return float((np.einsum("nhm,md->nhd", weights, v[:, 0]) * push).sum())

    _, gradients = slopes("native", level, lambda q, k, v: ops.varlen_attention(q, k, v, [(n, m)], causal=True), inputs)
    for number, gradient in enumerate(gradients):
        assert gradient is not None
        for place in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-5, -1e-5):
                arrays = [tensor.numpy().astype(np.float64) for tensor in inputs]
                arrays[number][place] += step
                sides.append(value(arrays))
            assert gradient[place] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-5)


@each_level
def test_scores_far_apart_do_not_overflow(level: str) -> None:
    """Scores of 10^4, where a weight is 0 or 1 but for a few: finite, and 0 for keys that are not seen."""
    inputs = learning(normal(40, 2, 16, scale=40), normal(40, 2, 16, seed=1, scale=40), normal(40, 2, 16, seed=2))
    _, gradients = slopes(
        "native", level, lambda q, k, v: ops.varlen_attention(q, k, v, [(40, 40)], causal=True), inputs
    )
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


@each_level
def test_threads_company_and_recomputation_change_no_bit(level: str) -> None:
    lengths = [300, 5, 530]
    op, inputs = rotary(4, 1, 32, lengths)
    alone = slopes("native", level, op, inputs, threads=1)
    for threads in (2, 5):
        identical(alone, slopes("native", level, op, inputs, threads=threads))
    identical(alone, slopes("native", level, op, inputs, threads=2, again=True))
    start = 0
    cos, sin = ops.half_tables(normal(sum(lengths), 16, seed=8, scale=9))
    push = normal(sum(lengths), 4 * 32, seed=90)
    for n in lengths:  # each sequence by itself
        rows = slice(start, start + n)
        parts = learning(*(tensor[rows].detach() for tensor in inputs))
        with native.using("native", level=level):
            out = ops.rotary_attention(
                (parts[0], parts[1], parts[2]), cos[rows].contiguous(), sin[rows].contiguous(), 32, [n]
            )
            (out * push[rows]).sum().backward()
        for part, whole in zip(parts, alone[1], strict=True):
            assert whole is not None
            np.testing.assert_array_equal(part.grad.numpy(), whole[rows])
        start += n


@needs_native
def test_slices_of_a_wider_tensor() -> None:
    """q and k as they come out of one rotation."""
    qk, v = learning(normal(50, 8, 32), normal(50, 2, 32, seed=1))

    def op(qk: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        return ops.varlen_attention(qk[:, :6], qk[:, 6:], v, [(20, 20), (30, 30)], causal=True)

    assert_slopes("portable", op, [qk, v])
    identical(slopes("native", None, op, [qk, v]), slopes("native", None, op, [qk, v], again=True))


@needs_native
def test_what_is_frozen_gets_no_gradient() -> None:
    op, inputs = rotary(4, 2, 16, [9, 40])
    _, whole = slopes("native", None, op, inputs)
    inputs[1].stop_gradient = True
    _, gradients = slopes("native", None, op, inputs)
    assert gradients[1] is None
    np.testing.assert_array_equal(gradients[0], whole[0])
    np.testing.assert_array_equal(gradients[2], whole[2])


@needs_native
def test_what_does_not_fit_is_named() -> None:
    q, k = normal(4, 32), normal(4, 16)
    with native.using("native") as module, pytest.raises(ValueError, match="attention_learning: k has shape"):
        module.attention_learning(q, k, k, (None, None), 2, 2, [(4, 4)], True)
    with native.using("native") as module, pytest.raises(ValueError, match="attention_learning: spans must add up"):
        module.attention_learning(q, k, k, (None, None), 2, 1, [(3, 3)], True)
