"""swiglu and quick_gelu and their gradients, against float64 and against what eager 16-bit code makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, assert_close, assert_rounded_once, rounded, rounding
from tests.gpu.kernels.structs_activation import ActivationGradParams, ActivationParams

Array = npt.NDArray[Any]
GATES = ("swiglu", "quick_gelu")
# rows, width, strides of x and up: whole packs, odd widths, odd strides, more rows than the grid has.
SMALL = [(1, 64, 64, 64), (3, 1120, 1136, 1120), (5, 37, 40, 39), (2, 64, 67, 64), (2, 64, 64, 67), (530, 8, 8, 16)]
LARGE = [(rows, width, 2 * width, 2 * width) for rows in (1, 64, 4096) for width in (8960, 18944, 29568, 5120)]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    x = rounded(4 * rng.normal(size=shape), dtype)
    x.reshape(-1)[: min(4, x.size)] = rounded([0.0, -30.0, 40.0, -1e-3], dtype)[: x.size]
    return x


def _slope_of(gate: str) -> float:
    return 1.702 if gate == "quick_gelu" else 1.0


def _truth(gate: str, x: Array, up: Array) -> Array:
    x, up = x.astype(np.float64), up.astype(np.float64)
    return x / (1 + np.exp(-_slope_of(gate) * x)) * (up if gate == "swiglu" else 1.0)


def _naive(gate: str, x: Array, up: Array, dtype: str) -> Array:
    r = rounding(dtype)
    s = r(1 / (1 + np.exp(-r(np.float32(_slope_of(gate)) * x))))
    return r(r(x * s) * up) if gate == "swiglu" else r(x * s)


def _grad(gate: str, x: Array, up: Array, grad: Array, r: Any) -> tuple[Array, Array]:
    """Of x and of up, with `r` after every step."""
    slope = x.dtype.type(_slope_of(gate))
    s = r(1 / (1 + np.exp(-r(slope * x))))
    inner = r(s * r(1 + r(r(slope * x) * r(1 - s))))
    outer = r(grad * up) if gate == "swiglu" else grad
    return r(outer * inner), r(grad * r(x * s))


def _strided(array: Array, stride: int) -> Array:
    whole = np.full((array.shape[0], stride), np.float32(np.nan))
    whole[:, : array.shape[1]] = array
    return whole


def _run(device: Device, gate: str, dtype: str, shape: tuple[int, int, int, int]) -> tuple[Array, Array, Array]:
    rows, width, x_stride, up_stride = shape
    rng = np.random.default_rng(rows * width)
    x, up = _random(rng, (rows, width), dtype), _random(rng, (rows, width), dtype)
    operands = [device.floats(_strided(x, x_stride), dtype), device.floats(_strided(up, up_stride), dtype)]
    out = device.empty((rows, width), dtype)
    pointers = {"x": operands[0].pointer, "up": operands[1].pointer if gate == "swiglu" else None, "out": out.pointer}
    sizes = {"rows": rows, "width": width, "x_stride": x_stride, "up_stride": up_stride}
    device.call(gate, ActivationParams(dtype=CODES[dtype], **pointers, **sizes))
    return x, up, out.numpy()


def _run_grad(device: Device, gate: str, dtype: str, shape: tuple[int, int, int, int]) -> list[Array]:
    rows, width, stride, _ = shape
    rng = np.random.default_rng(rows + width)
    x, up, grad = (_random(rng, (rows, width), dtype) for _ in range(3))
    pointers = [device.floats(_strided(array, stride), dtype) for array in (x, up)]
    given, made = device.floats(grad, dtype), [device.empty((rows, stride), dtype) for _ in range(2)]
    params = ActivationGradParams(dtype=CODES[dtype], x=pointers[0].pointer, grad=given.pointer, grad_x=made[0].pointer)
    params.rows, params.width, params.x_stride = rows, width, stride
    if gate == "swiglu":
        params.up, params.grad_up = pointers[1].pointer, made[1].pointer
    device.call(f"{gate}_grad", params)
    for buffer in made:
        assert np.isnan(buffer.numpy()[:, width:]).all(), "written between rows"
    return [x, up, grad, *(buffer.numpy()[:, :width] for buffer in made)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
def test_gates(device: Device, gate: str, dtype: str) -> None:
    for shape in LARGE if device.real else SMALL:
        x, up, out = _run(device, gate, dtype, shape)
        truth = _truth(gate, x, up)
        assert_close(out, truth, _naive(gate, x, up, dtype), dtype)
        assert_rounded_once(out, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", GATES)
def test_gradients_of_gates(device: Device, gate: str, dtype: str) -> None:
    for shape in LARGE if device.real else SMALL:
        x, up, grad, *made = _run_grad(device, gate, dtype, shape)
        wide = [array.astype(np.float64) for array in (x, up, grad)]
        truth, naive = _grad(gate, *wide, lambda array: array), _grad(gate, x, up, grad, rounding(dtype))
        for actual, true, low in list(zip(made, truth, naive, strict=True))[: 2 if gate == "swiglu" else 1]:
            assert_close(actual, true, low, dtype)


def test_a_result_may_take_the_place_of_its_operand(device: Device) -> None:
    shape = (7, 136, 136, 136)
    x, up, out = _run(device, "swiglu", "bfloat16", shape)
    inside, other = device.floats(x, "bfloat16"), device.floats(up, "bfloat16")
    params = ActivationParams(CODES["bfloat16"], inside.pointer, other.pointer, inside.pointer, 7, 136, 136, 136)
    device.call("swiglu", params)
    np.testing.assert_array_equal(inside.numpy(), out)


def test_large_arguments_saturate(device: Device) -> None:
    x = np.array([[-1e4, -200.0, 200.0, 1e4, 0.0, -0.0, 88.0, -88.0]], np.float32)
    for dtype in DTYPES:
        for gate in GATES:
            buffers = [device.floats(x, dtype), device.floats(np.ones_like(x), dtype), device.empty(x.shape, dtype)]
            sizes = (1, 8, 8, 8)
            device.call(gate, ActivationParams(CODES[dtype], *(buffer.pointer for buffer in buffers), *sizes))
            expected = rounded(np.maximum(x, 0.0), dtype)
            np.testing.assert_allclose(buffers[2].numpy(), expected, rtol=0, atol=1e-30)


def test_nothing_to_do_and_unknown_types(device: Device) -> None:
    assert device.status("swiglu", ActivationParams(dtype=CODES["bfloat16"], rows=0, width=8)) == "ok"
    assert device.status("swiglu", ActivationParams(dtype=CODES["int8"], rows=1, width=8)) == "unsupported"


def test_order_of_threads_does_not_matter(device: Device) -> None:
    first = _run_grad(device, "swiglu", "bfloat16", SMALL[1])[3:]
    with device.other_order():
        second = _run_grad(device, "swiglu", "bfloat16", SMALL[1])[3:]
    np.testing.assert_array_equal(first, second)
