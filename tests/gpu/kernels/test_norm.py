"""RMS and layer normalisation and their gradients, against float64 and against what eager 16-bit code makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, assert_close, assert_rounded_once, rounded, rounding
from tests.gpu.kernels.structs_norm import NormGradParams, NormParams

Array = npt.NDArray[Any]
OPS = ("rms_norm", "layer_norm")
EPSILON = 1e-6
# rows, width: one to four packs a thread, partial warps, odd widths, rows too wide to be kept.
SMALL = [(1, 1536), (3, 64), (9, 1288), (9, 4104), (2, 37), (1, 16392), (2, 8200)]
LARGE = [(rows, width) for rows in (1, 7, 64, 2048, 16384) for width in (1280, 1536, 3584, 8192, 5120)] + SMALL
SMALL_GRAD = [(1, 1536), (7, 64), (21, 136), (150, 64), (3, 37), (5, 4104), (4, 8200)]
LARGE_GRAD = [(rows, width) for rows in (1, 100, 4096) for width in (1280, 1536, 3584, 8192)] + SMALL_GRAD


@dataclass
class Case:
    """Operands as rounded to dtype."""

    op: str
    dtype: str
    x: Array
    delta: Array
    weight: Array
    bias: Array

    @property
    def layer(self) -> bool:
        return self.op == "layer_norm"


def _case(op: str, dtype: str, shape: tuple[int, int], *, mean: float = 0.3) -> Case:
    rng = np.random.default_rng(shape[0] * shape[1])
    x, delta = rng.normal(mean, 2.0, size=shape), rng.normal(size=shape)
    return Case(
        op,
        dtype,
        rounded(x, dtype),
        rounded(delta, dtype),
        rounded(rng.normal(1.0, 0.5, size=shape[1]), dtype),
        rounded(rng.normal(size=shape[1]), dtype),
    )


def _normal(x: Array, layer: bool, r: Any) -> tuple[Array, Array]:
    """The normalised rows and what they were multiplied by, with `r` after every step (means are taken in float32)."""
    if layer:
        x = r(x - r(x.mean(axis=-1, keepdims=True)))
    scale = r(1 / np.sqrt(r((x * x).mean(axis=-1, keepdims=True)) + x.dtype.type(EPSILON)))
    return r(x * scale), scale


def _expected(case: Case, x: Array, wide: bool) -> Array:
    r = (lambda array: array) if wide else rounding(case.dtype)
    to = np.float64 if wide else np.float32
    out = r(_normal(x.astype(to), case.layer, r)[0] * case.weight.astype(to))
    return r(out + case.bias.astype(to)) if case.layer else out


def _expected_grad(case: Case, grad: Array, grad_sum: Array, wide: bool) -> tuple[Array, Array, Array]:
    """Of x, weight and bias."""
    r = (lambda array: array) if wide else rounding(case.dtype)
    x, grad, grad_sum, weight = (
        a.astype(np.float64 if wide else np.float32) for a in (case.x, grad, grad_sum, case.weight)
    )
    y, scale = _normal(x, case.layer, r)
    g = r(grad * weight)
    made = r(g - r(y * r(r(g * y).mean(axis=-1, keepdims=True))))
    if case.layer:
        made = r(made - r(g.mean(axis=-1, keepdims=True)))
    of_x = r(r(scale * made) + grad_sum)
    return of_x, r(r(grad * y).sum(axis=0)), r(grad.sum(axis=0))


def _params(device: Device, case: Case, kept: list[Any], **more: Any) -> NormParams:
    """`kept` keeps the buffers alive."""
    out = device.empty(more.pop("shape", case.x.shape), case.dtype)
    weight, bias = device.floats(case.weight, case.dtype), device.floats(case.bias, case.dtype)
    kept += [out, weight, bias]
    rows, width = more.pop("rows", case.x.shape[0]), case.x.shape[1]
    params = NormParams(CODES[case.dtype], weight=weight.pointer, out=out.pointer, rows=rows, width=width, **more)
    params.epsilon, params.bias = EPSILON, bias.pointer if case.layer else None
    return params


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_rows_are_normalised(device: Device, op: str, dtype: str) -> None:
    for shape in LARGE if device.real else SMALL:
        case, kept = _case(op, dtype, shape), []
        x = device.floats(case.x, dtype)
        device.call(op, _params(device, case, kept, x=x.pointer))
        truth = _expected(case, case.x, True)
        assert_close(kept[0].numpy(), truth, _expected(case, case.x, False), dtype)
        assert_rounded_once(kept[0].numpy(), truth, dtype)


@pytest.mark.parametrize("place", ["sum", "x", "delta"])
@pytest.mark.parametrize("op", OPS)
def test_the_residual_is_added_and_kept(device: Device, op: str, place: str) -> None:
    """The sum may take the place of an operand; it is rounded before it is normalised."""
    for dtype in DTYPES:
        for shape in [(2, 1536), (9, 1288), (3, 37)]:
            case, kept = _case(op, dtype, shape), []
            buffers = {"x": device.floats(case.x, dtype), "delta": device.floats(case.delta, dtype)}
            buffers["sum"] = device.empty(shape, dtype) if place == "sum" else buffers[place]
            pointers = {name: buffer.pointer for name, buffer in buffers.items()}
            device.call(op, _params(device, case, kept, **pointers))
            both = rounded(case.x + case.delta, dtype)
            np.testing.assert_array_equal(buffers["sum"].numpy(), both)
            assert_close(kept[0].numpy(), _expected(case, both, True), _expected(case, both, False), dtype)


def test_layer_norm_gathers_rows(device: Device) -> None:
    for dtype in ("bfloat16", "float32"):
        for width in (1280, 37):
            case, kept = _case("layer_norm", dtype, (8, width)), []
            order = np.array([3, 0, 0, 7, 5, 1, 2, 6, 4, 7], np.int64)
            x, gather = device.floats(case.x, dtype), device.put(order)
            more = {"x": x.pointer, "gather": gather.pointer, "rows": 10, "shape": (10, width)}
            device.call("layer_norm", _params(device, case, kept, **more))
            expected = [_expected(case, case.x[order], wide) for wide in (True, False)]
            assert_close(kept[0].numpy(), *expected, dtype)


def test_a_large_mean_is_taken_off(device: Device) -> None:
    """Also what rounding the mean to float32 leaves of it, as naive code does not."""
    case, kept = _case("layer_norm", "float32", (3, 1280), mean=3e4), []
    x = device.floats(case.x, "float32")
    device.call("layer_norm", _params(device, case, kept, x=x.pointer))
    np.testing.assert_allclose(kept[0].numpy(), _expected(case, case.x, True), rtol=0, atol=1e-5)
    made = _run_grad(device, case, case.delta, case.bias * np.ones_like(case.x))
    truth = _expected_grad(case, case.delta, case.bias * np.ones_like(case.x), True)
    for actual, expected in zip(made, truth, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_rows_that_are_not_aligned(device: Device) -> None:
    case, kept = _case("rms_norm", "bfloat16", (4, 64)), []
    x = device.floats(np.concatenate([[0.0], case.x.reshape(-1)]), "bfloat16")
    device.call("rms_norm", _params(device, case, kept, x=x.pointer + 2))
    assert_close(kept[0].numpy(), _expected(case, case.x, True), _expected(case, case.x, False), "bfloat16")


def _run_grad(
    device: Device, case: Case, grad: Array, grad_sum: Array | None, wanted: str = "xwb"
) -> list[Array | None]:
    """Gradients of x, weight and bias, those that are `wanted`."""
    rows, width = case.x.shape
    given = [device.floats(array, case.dtype) for array in (case.x, case.weight, grad)]
    more = None if grad_sum is None else device.floats(grad_sum, case.dtype)
    made = [device.empty(case.x.shape, case.dtype), *(device.empty((width,), "float32") for _ in range(2))]
    wanted = wanted if case.layer else wanted.replace("b", "")
    made = [buffer if name in wanted else None for name, buffer in zip("xwb", made, strict=True)]
    pointers = [None if buffer is None else buffer.pointer for buffer in (*given, more, *made)]
    params = NormGradParams(CODES[case.dtype], *pointers, None, rows, width, EPSILON)
    scratch = device.workspace("norm_grad", params)
    params.workspace = scratch.pointer if scratch else None
    device.call(f"{case.op}_grad", params)
    return [None if buffer is None else buffer.numpy() for buffer in made]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_gradients(device: Device, op: str, dtype: str) -> None:
    for shape in LARGE_GRAD if device.real else SMALL_GRAD:
        case, rng = _case(op, dtype, shape), np.random.default_rng(5)
        grad, grad_sum = (rounded(rng.normal(size=shape), dtype) for _ in range(2))
        made = _run_grad(device, case, grad, grad_sum)
        truth, naive = (_expected_grad(case, grad, grad_sum, wide) for wide in (True, False))
        assert_close(made[0], truth[0], naive[0], dtype)
        for i in (1, 2) if case.layer else (1,):
            assert_close(made[i], truth[i], naive[i], "float32")


@pytest.mark.parametrize("op", OPS)
def test_only_what_is_wanted_is_made(device: Device, op: str) -> None:
    for shape in [(5, 64), (5, 37)]:
        case = _case(op, "bfloat16", shape)
        grad = rounded(np.random.default_rng(0).normal(size=shape), "bfloat16")
        whole = _run_grad(device, case, grad, None)
        truth, naive = (_expected_grad(case, grad, np.zeros_like(grad), wide) for wide in (True, False))
        assert_close(whole[0], truth[0], naive[0], "bfloat16")
        for wanted in ("x", "w", "b") if case.layer else ("x", "w"):
            for full, part in zip(whole, _run_grad(device, case, grad, None, wanted), strict=True):
                assert part is None or np.array_equal(part, full)


def test_gradients_of_weights_over_no_rows_are_zero(device: Device) -> None:
    case = _case("layer_norm", "bfloat16", (0, 64))
    made = _run_grad(device, case, case.x, None)
    assert not made[1].any() and not made[2].any()


def test_what_there_is_no_kernel_for_is_said(device: Device) -> None:
    case, kept = _case("rms_norm", "bfloat16", (2, 64)), []
    gather, x = device.put(np.zeros(2, np.int64)), device.floats(case.x, "bfloat16")
    assert device.status("rms_norm", _params(device, case, kept, x=x.pointer, gather=gather.pointer)) == "unsupported"
    assert device.status("rms_norm", NormParams(CODES["int8"], rows=1, width=8)) == "unsupported"
    assert device.status("rms_norm", NormParams(CODES["bfloat16"], rows=0, width=8)) == "ok"


@pytest.mark.parametrize("op", OPS)
def test_order_of_threads_does_not_matter(device: Device, op: str) -> None:
    def run() -> list[Array]:
        case, kept = _case(op, "bfloat16", (9, 1288)), []
        x = device.floats(case.x, "bfloat16")
        device.call(op, _params(device, case, kept, x=x.pointer))
        return [kept[0].numpy(), *(made for made in _run_grad(device, case, case.delta, case.x) if made is not None)]

    first = run()
    with device.other_order():
        second = run()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
