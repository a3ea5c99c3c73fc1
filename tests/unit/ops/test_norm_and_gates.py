"""Norms and gates of the native ops give what the composed ones give."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from qvl import ops
from tests.unit.ops.levels import assert_close, both, each_level, normal, running

# Some units in the last place of float32, and sums over a row in another order.
EXACT = 5e-6
WIDTHS = [1, 3, 17, 64, 1280, 1536, 3584, 8192]


@each_level
@pytest.mark.parametrize("rows", [1, 7, 281])
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(level: str, width: int, rows: int) -> None:
    x, delta = normal(rows, width, scale=3), normal(rows, width, seed=1)
    weight, bias = normal(width, seed=2), normal(width, seed=3)
    assert_close(*both(level, lambda: ops.rms_norm(x, weight, 1e-6)), EXACT)
    # With a single element variance is 0 but for rounding, which 1e-6 makes 1000 times larger.
    exact = EXACT if width > 1 else 1e-3
    assert_close(*both(level, lambda: ops.layer_norm(x, weight, bias, 1e-6)), exact)
    before = x.numpy().copy(), delta.numpy().copy()
    for one, other in zip(*both(level, lambda: ops.add_rms_norm(x, delta, weight, 1e-6)), strict=True):
        assert_close(one, other, EXACT)
    for one, other in zip(*both(level, lambda: ops.add_layer_norm(x, delta, weight, bias, 1e-6)), strict=True):
        assert_close(one, other, exact)
    np.testing.assert_array_equal(before, (x.numpy(), delta.numpy()))


@each_level
@pytest.mark.parametrize("width", [1280, 1281])
def test_layer_norm_of_a_row_far_from_zero(level: str, width: int) -> None:
    """1000 +- 1 keeps its variance, and its mean is right to more than float32 has at 1000."""
    x, weight, bias = normal(5, width) + 1000.0, normal(width, seed=2), normal(width, seed=3)
    with running("native", level):
        found = ops.layer_norm(x, weight, bias, 1e-6).numpy()
    wide = x.numpy().astype(np.float64)
    apart = wide - wide.mean(axis=-1, keepdims=True)
    expected = apart / np.sqrt((apart**2).mean(axis=-1, keepdims=True) + 1e-6) * weight.numpy() + bias.numpy()
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)


@each_level
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (2, 3, 8960), (281, 8960), (1, 29568)], ids=str)
def test_gates(level: str, shape: tuple[int, ...]) -> None:
    gate, up = normal(*shape, scale=4), normal(*shape, seed=1)
    assert_close(*both(level, lambda: ops.swiglu(gate, up)), EXACT)
    joined = paddle.concat([gate, up], axis=-1)
    assert_close(*both(level, lambda: ops.swiglu(joined)), EXACT)
    assert_close(*both(level, lambda: ops.quick_gelu(gate)), EXACT)


@each_level
def test_gates_at_the_ends_of_float32(level: str) -> None:
    x = paddle.to_tensor([-3e38, -1e4, -100.0, -88.5, -20.0, -0.0, 1e-30, 20.0, 100.0, 3e38, float("nan")])
    with running("native", level):
        found = ops.quick_gelu(x).numpy()
    wide = x.numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(np.minimum(-1.702 * wide, 700)))
    # What is below the smallest normal float may be anything as small.
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-5, atol=1e-33)
    assert abs(found[0]) <= 3.0


def test_what_does_not_fit_is_named() -> None:
    with running("native") as module:
        x = normal(4, 6)
        with pytest.raises(ValueError, match=r"rms_norm: weight has shape \[5\], \[6\] is needed"):
            module.rms_norm(x, normal(5), 1e-6)
        with pytest.raises(ValueError, match=r"add_rms_norm: delta has shape \[3, 6\], \[4, 6\] is needed"):
            module.add_rms_norm(x, normal(3, 6), normal(6), 1e-6)
        with pytest.raises(ValueError, match="layer_norm: bias must be float32"):
            module.layer_norm(x, normal(6), normal(6).astype("float64"), 1e-6)
        with pytest.raises(ValueError, match=r"swiglu: up has shape \[4, 5\], \[4, 6\] is needed"):
            module.swiglu(x, normal(4, 5))
        with pytest.raises(ValueError, match=r"swiglu: gate has shape .* must be even"):
            module.swiglu(normal(4, 5))
        with pytest.raises(ValueError, match="quick_gelu: x must be contiguous"):
            module.quick_gelu(normal(4, 6).transpose([1, 0]))


def test_which_body_an_op_takes() -> None:
    x, weight = normal(3, 8), normal(8, seed=1)
    x.stop_gradient = weight.stop_gradient = False
    assert not ops.runs_natively(x, weight)  # those of inference record no gradient
    with running("native"):
        assert ops.runs_natively(x, weight)  # where none is recorded
        assert not ops.runs_natively(x.astype("bfloat16"))
