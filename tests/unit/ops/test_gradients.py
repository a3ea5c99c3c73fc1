"""Norms and gates that learn give the gradients of their composed bodies, for any shape, level and threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl import ops
from qvl.ops import native
from tests.unit.ops.levels import each_level, normal
from tests.unit.ops.slopes import EXACT, Op, assert_slopes, identical, learning, needs_native, slopes

SIZES = [(1, 1), (1, 17), (7, 64), (33, 131), (281, 192), (100, 1536)]


@each_level
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_norms(level: str, size: tuple[int, int]) -> None:
    rows, width = size
    x, delta, weight, bias = learning(
        normal(rows, width, scale=3), normal(rows, width, seed=1), normal(width, seed=2), normal(width, seed=3)
    )
    assert_slopes(level, lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight])
    assert_slopes(level, lambda x, d, w: ops.add_rms_norm(x, d, w, 1e-6), [x, delta, weight])
    if width > 1:  # else variance is 0, and its rounding times 1000 is all there is to compare
        assert_slopes(level, lambda x, w, b: ops.layer_norm(x, w, b, 1e-6), [x, weight, bias])
        assert_slopes(level, lambda x, d, w, b: ops.add_layer_norm(x, d, w, b, 1e-6), [x, delta, weight, bias])


@each_level
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 33, 17), (333, 64, 131)], ids=str)
def test_linear_with_a_bias(level: str, size: tuple[int, int, int]) -> None:
    rows, k, n = size
    inputs = learning(normal(rows, k), normal(k, n, seed=1), normal(n, seed=2))
    assert_slopes(level, ops.learning_linear, inputs)


@each_level
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (2, 3, 71), (281, 512), (3, 8960)], ids=str)
def test_gates(level: str, shape: tuple[int, ...]) -> None:
    gate, up = learning(normal(*shape, scale=4), normal(*shape, seed=1))
    assert_slopes(level, ops.swiglu, [gate, up])
    assert_slopes(level, ops.swiglu, learning(normal(*shape[:-1], 2 * shape[-1], scale=4)))
    assert_slopes(level, ops.quick_gelu, [gate])


@each_level
def test_gates_at_the_ends_of_float32(level: str) -> None:
    ends = paddle.to_tensor([-3e38, -1e4, -100.0, -88.5, -20.0, -0.0, 1e-30, 20.0, 100.0, 3e38], stop_gradient=False)
    for op, slope in ((lambda x: ops.swiglu(x, paddle.ones_like(x)), 1.0), (ops.quick_gelu, 1.702)):
        with native.using("native", level=level):
            (gradient,) = paddle.grad(op(ends).sum(), ends)
        wide = ends.numpy().astype(np.float64) * slope
        sigmoid = 1 / (1 + np.exp(np.minimum(-wide, 700)))
        np.testing.assert_allclose(gradient.numpy(), sigmoid * (1 + wide * (1 - sigmoid)), rtol=1e-5, atol=1e-30)


@each_level
def test_finite_differences_in_float64(level: str) -> None:
    """Of a normalisation written down here, not of another body's."""
    rows, width, step = 3, 5, 1e-5
    x, weight, bias = learning(normal(rows, width), normal(width, seed=2), normal(width, seed=3))
    push = normal(rows, width, seed=90).numpy().astype(np.float64)

    def value(op: str, arrays: Sequence[npt.NDArray[np.float64]]) -> float:
        x, weight, *bias = arrays
        if op == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        normal_row = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return float(((normal_row * weight + (bias[0] if bias else 0.0)) * push).sum())

    for op, inputs in (("rms", [x, weight]), ("layer", [x, weight, bias])):
        body = ops.rms_norm if op == "rms" else ops.layer_norm
        _, gradients = slopes("native", level, lambda *given, body=body: body(*given, 1e-6), inputs)
        for number, gradient in enumerate(gradients):
            assert gradient is not None
            for place in np.ndindex(gradient.shape):
                sides = []
                for sign in (step, -step):
                    arrays = [tensor.numpy().astype(np.float64) for tensor in inputs]
                    arrays[number][place] += sign
                    sides.append(value(op, arrays))
                assert gradient[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-4)


def cases() -> dict[str, tuple[Op, list[paddle.Tensor]]]:
    """Each op with inputs of several blocks of rows, all of which learn."""
    x, delta, weight, bias = learning(
        normal(301, 515), normal(301, 515, seed=1), normal(515, seed=2), normal(515, seed=3)
    )
    return {
        "rms_norm": (lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight]),
        "add_rms_norm": (lambda x, d, w: ops.add_rms_norm(x, d, w, 1e-6), [x, delta, weight]),
        "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b, 1e-6), [x, weight, bias]),
        "add_layer_norm": (lambda x, d, w, b: ops.add_layer_norm(x, d, w, b, 1e-6), [x, delta, weight, bias]),
        "learning_linear": (ops.learning_linear, [delta, *learning(normal(515, 33, seed=4), normal(33, seed=5))]),
        "swiglu": (ops.swiglu, [x, delta]),
        "quick_gelu": (ops.quick_gelu, [x]),
    }


@each_level
@pytest.mark.parametrize("name", cases())
def test_threads_and_recomputation_change_no_bit(level: str, name: str) -> None:
    op, inputs = cases()[name]
    alone = slopes("native", level, op, inputs, threads=1)
    for threads in (2, 5):
        identical(alone, slopes("native", level, op, inputs, threads=threads))
    identical(alone, slopes("native", level, op, inputs, threads=2, again=True))


@needs_native
@pytest.mark.parametrize("name", cases())
def test_what_is_frozen_gets_no_gradient(name: str) -> None:
    op, inputs = cases()[name]
    _, whole = slopes("native", None, op, inputs)
    for frozen in range(len(inputs) if len(inputs) > 1 else 0):
        for tensor in inputs:
            tensor.stop_gradient = False
        inputs[frozen].stop_gradient = True
        for again in (False, True):
            _, gradients = slopes("native", None, op, inputs, again=again)
            for number, (found, expected) in enumerate(zip(gradients, whole, strict=True)):
                assert (found is None) == (number == frozen)
                if found is not None:
                    np.testing.assert_array_equal(found, expected)


@needs_native
def test_rows_that_lie_apart_are_taken_as_they_are_meant() -> None:
    """A slice of the columns of a matrix, whose memory recomputation would hand back in another shape."""
    wide, weight = learning(normal(40, 96), normal(48, seed=2))

    def op(wide: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        first, second = wide[:, :48], wide[:, 48:]
        return ops.swiglu(ops.rms_norm(first, weight, 1e-6), ops.quick_gelu(second))

    for again in (False, True):
        found = slopes("native", None, op, [wide, weight], again=again)[1]
        for one, other in zip(found, slopes("composed", None, op, [wide, weight])[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=EXACT, atol=EXACT * 10)


@needs_native
def test_columns_are_summed_as_float32_can_be() -> None:
    """70 001 rows of 1 + noise: one by one, the sum would be off by 1e-4 of itself."""
    rows = np.random.default_rng(5).normal(1.0, 0.5, (70_001, 9)).astype(np.float32)
    with native.using("native") as module:
        found = module.column_sums(paddle.to_tensor(rows)).numpy()
    np.testing.assert_allclose(found, rows.astype(np.float64).sum(axis=0), rtol=3e-7)
