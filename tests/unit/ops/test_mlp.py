"""The MLP as one op: the numbers of the ops it is made of, at every level of CPU features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl.ops import linear, native, packing
from qvl.ops.activation import quick_gelu, swiglu
from qvl.ops.linear import PackedLinear
from qvl.ops.mlp import Gate, mlp
from qvl.ops.packing import Packing
from tests.unit.ops.test_linear import LEVELS, activations, each_level
from tests.unit.ops.test_packing import ALL, matrix, needs_native

each_packing = pytest.mark.parametrize("how", ALL, ids=lambda how: f"{how.kind}-{how.group}-{how.symmetric}")
each_gate = pytest.mark.parametrize("gate", ["swiglu", "quick_gelu"])
# One row and few, below and above what the tile unit takes, and one that is not a multiple of anything.
ROWS = (1, 7, 47, 48, 97)


def layer(n: int, k: int, how: Packing, seed: int) -> PackedLinear:
    return PackedLinear(packing.pack(matrix(n, k, seed=seed), how), matrix(1, n, seed=seed + 1)[0])


def layers(gate: Gate, k: int, width: int, n: int, how: Packing) -> tuple[list[PackedLinear], PackedLinear]:
    inner = [layer(width, k, how, seed) for seed in ((10, 20) if gate == "swiglu" else (10,))]
    return inner, layer(n, width, how, 30)


def apart(
    x: paddle.Tensor, inner: list[PackedLinear], down: PackedLinear, gate: Gate, residual: paddle.Tensor | None
) -> npt.NDArray[np.float32]:
    hidden = linear.linear(x, inner)
    return linear.linear(swiglu(hidden) if gate == "swiglu" else quick_gelu(hidden), down, residual).numpy()


@each_packing
@each_gate
@each_level
# The widths between: of whole tiles, of an odd number of panels, of a part of one.
@pytest.mark.parametrize(("k", "width", "n"), [(128, 256, 64), (96, 80, 50), (100, 200, 40), (64, 17, 16)])
def test_one_op_gives_what_three_give(how: Packing, gate: Gate, k: int, width: int, n: int, level: str) -> None:
    inner, down = layers(gate, k, width, n, how)
    for rows in ROWS:
        x, residual = paddle.to_tensor(10 * activations(rows, k)), paddle.to_tensor(matrix(rows, n, seed=2))
        with native.using("native", level=level, threads=2):
            for added in (None, residual):
                found = mlp(x, inner, down, gate, added).numpy()
                expected = apart(x, inner, down, gate, added)
                assert np.abs(expected).max() > 0.1
                # The same sums; a multiplication and an addition may have been joined.
                assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max(), f"{rows} rows"


@each_gate
def test_the_body_without_native_ops_is_the_formula(gate: Gate) -> None:
    inner, down = layers(gate, 100, 80, 50, Packing("int8"))
    x, residual = activations(5, 100), matrix(5, 50, seed=2)
    with native.using("composed"):
        found = mlp(paddle.to_tensor(x), inner, down, gate, paddle.to_tensor(residual)).numpy()
    first = [x.astype(np.float64) @ packing.unpack(each.matrix).astype(np.float64).T + each.bias for each in inner]
    slope = 1.0 if gate == "swiglu" else 1.702
    gated = first[0] / (1 + np.exp(-slope * first[0])) * (first[1] if gate == "swiglu" else 1)
    expected = gated @ packing.unpack(down.matrix).astype(np.float64).T + down.bias + residual
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@needs_native
@pytest.mark.parametrize("how", [Packing("bf16"), Packing("int8"), Packing("int4", 128)], ids=lambda how: how.kind)
@each_gate
def test_many_rows_are_taken_in_turns_and_threads_change_nothing(how: Packing, gate: Gate) -> None:
    inner, down = layers(gate, 64, 96, 48, how)
    x = paddle.to_tensor(activations(1100, 64))
    for level in LEVELS:
        with native.using("native", level=level, threads=1):
            alone = mlp(x, inner, down, gate).numpy()
            parts = [mlp(x[first : first + 100], inner, down, gate).numpy() for first in range(0, 1100, 100)]
        with native.using("native", level=level, threads=3):
            shared = mlp(x, inner, down, gate).numpy()
        assert np.array_equal(alone, shared)
        assert np.array_equal(alone, np.concatenate(parts)), level


@needs_native
@each_gate
def test_what_is_no_number_stays_in_its_row(gate: Gate) -> None:
    inner, down = layers(gate, 64, 33, 20, Packing("bf16"))
    x = activations(64, 64)
    x[3, 5] = np.nan
    with native.using("native"):
        found = mlp(paddle.to_tensor(x), inner, down, gate).numpy()
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()


@needs_native
def test_wrong_arguments_are_named() -> None:
    inner, down = layers("swiglu", 64, 32, 16, Packing("int8"))
    x = paddle.to_tensor(activations(2, 64))
    with native.using("native"):
        with pytest.raises(ValueError, match="mlp: inner must be 1 weights for quick_gelu, not 2"):
            mlp(x, inner, down, "quick_gelu")
        with pytest.raises(ValueError, match="mlp: down has 48 inputs, there are 32"):
            mlp(x, inner, layer(16, 48, Packing("int8"), 1), "swiglu")
        with pytest.raises(ValueError, match="mlp: inner must agree"):
            mlp(x, [inner[0], layer(48, 64, Packing("int8"), 1)], down, "swiglu")
        with pytest.raises(ValueError, match=r"mlp: x has shape \[2, 63\], its last size must be 64"):
            mlp(x[:, :63], inner, down, "swiglu")
        with pytest.raises(ValueError, match="mlp: residual"):
            mlp(x, inner, down, "swiglu", x)
        assert mlp(x[:0], inner, down, "swiglu").shape == [0, 16]
    with (
        native.using("composed"),
        pytest.raises(ValueError, match="mlp: inner must be 1 weights for quick_gelu, not 2"),
    ):
        mlp(x, inner, down, "quick_gelu")


@needs_native
@pytest.mark.parametrize("how", [Packing("bf16"), Packing("int4", 32)], ids=lambda how: how.kind)
# One row more than so many turns, whichever the level makes of them: the last one is not a turn of its own.
@pytest.mark.parametrize("rows", [513, 1025, 63 * 1024 + 1])
def test_the_last_row_of_many_is_what_it_is_among_few(how: Packing, rows: int) -> None:
    inner, down = layers("swiglu", 32, 32, 16, how)
    x = activations(rows, 32)
    for level in LEVELS:
        with native.using("native", level=level, threads=2):
            found = mlp(paddle.to_tensor(x), inner, down, "swiglu").numpy()
            few = mlp(paddle.to_tensor(x[-80:]), inner, down, "swiglu").numpy()
        assert np.array_equal(found[-80:], few), level
