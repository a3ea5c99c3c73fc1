"""Linear layers: every kind of weight at every level of CPU features, against sums in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl.ops import linear, native, packing
from qvl.ops.linear import PackedLinear
from qvl.ops.packing import Packing
from tests.unit.ops.test_packing import ALL, matrix, needs_native

with native.using("auto") as _module:
    LEVELS: list[str] = [] if _module is None else _module.levels()
each_level = pytest.mark.parametrize(
    "level", LEVELS or [pytest.param("none", marks=pytest.mark.skip(reason="the native ops are not built"))]
)
each_packing = pytest.mark.parametrize("how", ALL, ids=lambda how: f"{how.kind}-{how.group}-{how.symmetric}")

ROWS = [1, 2, 3, 7, 16, 17, 281]
MANY = 48  # rows from which AMX takes int8 and int4 weights

# How far a product may be from the exact one of the packed weights, in terms of the sum of |x| |w| over the inputs:
# float32 sums; a bfloat16 keeps 8 bits of both sides; int8 activations keep half of 1/127 of a group's largest one,
# which the test's activations keep below 6 times their mean.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2**-8, "int8": 6 * 0.5 / 127}


def activations(rows: int, k: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng([rows, k])
    return (rng.uniform(-1, 1, size=(rows, k)) * rng.choice([0.5, 2.0], size=(rows, 1))).astype(np.float32)


def arithmetic(how: Packing, level: str, rows: int) -> str:
    """What a level multiplies in."""
    if how.kind == "bf16":
        return "bfloat16" if level in ("avx512bf16", "amx") and rows >= 16 else "float32"
    return "bfloat16" if level == "amx" and rows >= MANY else "int8"


def layer(n: int, k: int, how: Packing, *, bias: bool) -> PackedLinear:
    return PackedLinear(packing.pack(matrix(n, k), how), matrix(1, n, seed=1)[0] if bias else None)


def exact(x: npt.NDArray[np.float32], weight: PackedLinear) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The product in float64, and the sum of the magnitudes of its terms."""
    wide, w = x.astype(np.float64), packing.unpack(weight.matrix).astype(np.float64)
    return wide @ w.T + (0 if weight.bias is None else weight.bias), np.abs(wide) @ np.abs(w).T + 1e-6


@each_packing
@pytest.mark.parametrize(("n", "k"), [(64, 256), (50, 100), (40, 1176)])
@each_level
def test_products_are_exact_to_the_arithmetic_of_the_level(how: Packing, n: int, k: int, level: str) -> None:
    weight = layer(n, k, how, bias=True)
    for rows in ROWS:
        x = activations(rows, k)
        residual = matrix(rows, n, seed=2)
        expected, size = exact(x, weight)
        with native.using("native", level=level, threads=2):
            found = linear.linear(paddle.to_tensor(x), weight, paddle.to_tensor(residual)).numpy()
        worst = np.abs(found - (expected + residual)) / (size + np.abs(residual))
        assert worst.max() < TOLERANCE[arithmetic(how, level, rows)], f"{rows} rows"


@pytest.mark.slow
@pytest.mark.parametrize("how", [Packing("bf16"), Packing("int8"), Packing("int4", 64)], ids=lambda how: how.kind)
@pytest.mark.parametrize(("n", "k"), [(1536, 8960), (256, 1536), (3840, 1280)])
@each_level
def test_shapes_of_the_real_model(how: Packing, n: int, k: int, level: str) -> None:
    with native.using("native"):
        weight = PackedLinear(linear.pack(matrix(n, k), how))
    for rows in (1, 5, 300):
        x = activations(rows, k)
        expected, size = exact(x, weight)
        with native.using("native", level=level, threads=3):
            found = linear.linear(paddle.to_tensor(x), weight).numpy()
        assert (np.abs(found - expected) / size).max() < TOLERANCE[arithmetic(how, level, rows)]


@each_packing
@pytest.mark.parametrize("rows", [1, 5])
def test_without_native_ops_the_answer_is_the_packed_matrix_in_float32(how: Packing, rows: int) -> None:
    weight, x = layer(50, 100, how, bias=True), activations(rows, 100)
    expected, size = exact(x, weight)
    with native.using("composed"):
        found = linear.linear(paddle.to_tensor(x), weight).numpy()
    assert (np.abs(found - expected) / size).max() < TOLERANCE["float32"]


@each_packing
@each_level
def test_a_row_gives_in_a_batch_what_it_gives_alone(how: Packing, level: str) -> None:
    weight, x = layer(96, 384, how, bias=False), paddle.to_tensor(activations(15, 384))
    with native.using("native", level=level):
        together = linear.linear(x, weight).numpy()
        alone = np.concatenate([linear.linear(x[i : i + 1], weight).numpy() for i in range(15)])
    assert np.array_equal(together, alone)


@each_packing
@pytest.mark.parametrize("rows", [1, 4, 60])
@each_level
def test_several_weights_side_by_side_give_what_each_gives(how: Packing, rows: int, level: str) -> None:
    weights = [layer(n, 128, how, bias=n != 32) for n in (50, 32, 7)]
    x = paddle.to_tensor(activations(rows, 128))
    with native.using("native", level=level):
        together = linear.linear(x, weights).numpy()
        each = np.concatenate([linear.linear(x, weight).numpy() for weight in weights], axis=1)
    assert np.array_equal(together, each)
    with native.using("composed"):
        np.testing.assert_allclose(linear.linear(x, weights).numpy(), together, atol=0.05, rtol=0.05)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_number_of_threads_changes_nothing(threads: int, rows: int) -> None:
    weight, x = layer(640, 256, Packing("int8"), bias=True), paddle.to_tensor(activations(rows, 256))
    with native.using("native", threads=1):
        expected = linear.linear(x, weight).numpy()
    with native.using("native", threads=threads):
        assert np.array_equal(linear.linear(x, weight).numpy(), expected)


@needs_native
def test_views_with_gaps_are_read_as_what_they_show() -> None:
    weight, wide = layer(32, 64, Packing("int8"), bias=False), paddle.to_tensor(activations(6, 128))
    with native.using("native"):
        expected = linear.linear(paddle.to_tensor(wide.numpy()[:, 64:].copy()), weight).numpy()
        assert np.array_equal(linear.linear(wide[:, 64:], weight).numpy(), expected)
        turned = paddle.to_tensor(np.ascontiguousarray(wide.numpy()[:, 64:].T)).transpose([1, 0])
        assert np.array_equal(linear.linear(turned, weight).numpy(), expected)


@each_level
@pytest.mark.parametrize("how", [Packing("bf16"), Packing("int8"), Packing("int4", 32)], ids=lambda how: how.kind)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_what_is_no_number_reaches_the_output(how: Packing, rows: int, level: str) -> None:
    weight, x = layer(32, 64, how, bias=False), activations(rows, 64)
    x[rows // 2, 5] = np.nan
    with native.using("native", level=level):
        found = linear.linear(paddle.to_tensor(x), weight).numpy()
    assert np.isnan(found[rows // 2]).all()
    assert np.isfinite(np.delete(found, rows // 2, axis=0)).all()


@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=needs_native)])
@each_packing
def test_a_packed_matrix_serves_as_an_embedding(how: Packing, mode: native.Mode) -> None:
    weight = layer(50, 100, how, bias=False)
    ids = paddle.to_tensor([[0, 49], [17, 17]], dtype="int64")
    with native.using(mode):
        found = linear.embedding(ids, weight).numpy()
        with pytest.raises(ValueError, match="embedding: ids has 50, the weight has 50 rows"):
            linear.embedding(paddle.to_tensor([50], dtype="int64"), weight)
        assert linear.embedding(ids[:0], weight).shape == [0, 2, 100]
    assert np.array_equal(found, packing.unpack(weight.matrix)[ids.numpy()])


@each_level
@pytest.mark.parametrize("in_major", [True, False])
@pytest.mark.parametrize(("n", "k"), [(64, 128), (37, 19), (5, 1176)])
def test_float32_matrices_are_multiplied_as_they_lie(level: str, in_major: bool, n: int, k: int) -> None:
    w, bias = matrix(n, k), matrix(1, n, seed=1)[0]
    stored = paddle.to_tensor(np.ascontiguousarray(w.T) if in_major else w)
    for rows in (1, 2, 3, 4, 9):
        x, residual = activations(rows, k), matrix(rows, n, seed=2)
        exact_sum = x.astype(np.float64) @ w.T.astype(np.float64) + bias + residual
        size = np.abs(x) @ np.abs(w).T + np.abs(bias) + np.abs(residual)
        arguments = (paddle.to_tensor(x), stored, paddle.to_tensor(bias), paddle.to_tensor(residual))
        for mode in ("native", "composed"):
            with native.using(mode, level=level if mode == "native" else None):
                found = linear.linear_dense(*arguments, in_major=in_major).numpy()
            assert (np.abs(found - exact_sum) / size).max() < TOLERANCE["float32"], f"{rows} rows, {mode}"


@needs_native
def test_a_layer_that_learns_keeps_its_gradient() -> None:
    x = paddle.to_tensor(activations(1, 8))
    w = paddle.to_tensor(matrix(8, 4), stop_gradient=False)
    with native.using("native"):
        linear.linear_dense(x, w).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), np.repeat(x.numpy().T, 4, axis=1), rtol=1e-6)


@needs_native
def test_wrong_arguments_are_named() -> None:
    weight = layer(32, 64, Packing("int8"), bias=False)
    x = paddle.to_tensor(activations(2, 64))
    with native.using("native") as module:
        with pytest.raises(ValueError, match=r"linear: x has shape \[2, 63\], its last size must be 64"):
            linear.linear(x[:, :63], weight)
        with pytest.raises(ValueError, match="linear: x must be float32, not float64"):
            linear.linear(x.astype("float64"), weight)
        with pytest.raises(ValueError, match=r"linear: residual has shape \[2, 64\], the result \[2, 32\]"):
            linear.linear(x, weight, x)
        with pytest.raises(ValueError, match="linear: weights must agree in kind, inputs and group"):
            linear.linear(x, [weight, layer(32, 64, Packing("bf16"), bias=False)])
        with pytest.raises(ValueError, match="linear: data has 10 bytes, 2048 are needed"):
            module.PackedWeight("int8", 32, 64, 0, np.zeros(10, np.int8), None, None, None)
        with pytest.raises(ValueError, match="pack: group must be 32, 64 or 128, not 48"):
            module.pack("int4", 48, np.zeros((4, 4), np.float32), np.zeros(4), None, None)
    with pytest.raises(ValueError, match=r"linear: bias has shape \[3\], the weight 32 outputs"):
        PackedLinear(weight.matrix, np.zeros(3, np.float32))


@needs_native
def test_no_rows_give_no_rows() -> None:
    weight = layer(32, 64, Packing("int4", 32), bias=True)
    with native.using("native"):
        assert linear.linear(paddle.zeros([0, 64]), weight).shape == [0, 32]
