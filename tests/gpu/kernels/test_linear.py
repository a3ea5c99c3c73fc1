"""Quantised linear layers, against float64 with the very numbers that are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels import packed
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, assert_close, rounded, rounding
from tests.gpu.kernels.packed import KINDS, Weight, packing, said
from tests.gpu.kernels.structs_linear import LinearParams, LinearWeight

Array = npt.NDArray[Any]
HALVES = ("bfloat16", "float16")
INT4 = packing.Packing("int4", 64, symmetric=False)
INT8 = packing.Packing("int8")
# Outputs and inputs of the layers of 2B, 7B and 72B.
LAYERS = [(2048, 1536), (1536, 1536), (17920, 1536), (1536, 8960), (4608, 3584), (3584, 3584), (37888, 3584)]
LAYERS += [(3584, 18944), (10240, 8192), (8192, 8192), (59136, 8192), (8192, 29568)]


@dataclass
class Call:
    """What a product is called with, besides the weights."""

    dtype: str
    rows: int
    x_gap: int = 0  # elements between rows
    out_gap: int = 0
    residual: bool = False
    in_place: bool = False


def _weights(device: Device, rng: np.random.Generator, kind: Any, sizes: list[int], k: int) -> list[Weight]:
    """Every other one has a bias."""
    made = []
    for i, n in enumerate(sizes):
        bias = rng.normal(size=n).astype(np.float32) if i % 2 else None
        made.append(packed.put(device, packed.matrix(rng, kind, n, k), bias))
    return made


def _gapped(device: Device, array: Array, gap: int, dtype: str) -> Any:
    return device.floats(np.pad(array, ((0, 0), (0, gap)), constant_values=np.nan), dtype)


def _run(device: Device, call: Call, weights: list[Weight], x: Array, residual: Array | None) -> Array:
    columns = sum(weight.struct.n for weight in weights)
    given = _gapped(device, x, call.x_gap, call.dtype)
    out, other = device.empty((call.rows, columns + call.out_gap), call.dtype), None
    if residual is not None:
        other = _gapped(device, residual, call.out_gap, call.dtype)
    structs = (LinearWeight * len(weights))(*(weight.struct for weight in weights))
    params = LinearParams(CODES[call.dtype], given.pointer, call.rows, x.shape[1] + call.x_gap, structs, len(weights))
    params.out_stride = columns + call.out_gap
    if other is not None:
        params.residual = other.pointer
        out = other if call.in_place else out
    params.out = out.pointer
    if workspace := device.workspace("linear", params):
        params.workspace = workspace.pointer
    device.call("linear", params)
    made = out.numpy()
    assert np.isnan(made[:, columns:]).all(), "written between rows"
    return made[:, :columns]


def _compare(device: Device, call: Call, weights: list[Weight], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    columns = sum(weight.struct.n for weight in weights)
    x = rounded(rng.normal(size=(call.rows, weights[0].struct.k)), call.dtype)
    residual = rounded(rng.normal(size=(call.rows, columns)), call.dtype) if call.residual else None
    out = _run(device, call, weights, x, residual)
    truth, naive = _expected(call, weights, x, residual)
    assert_close(out, truth, naive, call.dtype)
    return out


def _expected(call: Call, weights: list[Weight], x: Array, residual: Array | None) -> tuple[Array, Array]:
    """The truth, and what weights rounded to the dtype and a product rounded to it give."""
    r = rounding(call.dtype)
    true, low = [], []
    for weight in weights:
        numbers, bias = weight.numbers(), 0.0 if weight.bias is None else weight.bias
        true.append(x.astype(np.float64) @ numbers.T + bias)
        low.append(r(x @ r(numbers).T + np.float32(bias)))
    truth, naive = np.concatenate(true, axis=1), np.concatenate(low, axis=1)
    return (truth, naive) if residual is None else (truth + residual, r(naive + residual))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS, ids=said)
def test_every_kind_of_weight(device: Device, kind: Any, dtype: str) -> None:
    """Odd sizes, and numbers of rows on both sides of where the kernel changes."""
    rng = np.random.default_rng(1)
    for k, numbers_of_rows in ((200, (1, 4, 9, 33)), (193, (2, 8, 17)), (448, (1, 5, 64))):
        weights = _weights(device, rng, kind, [40], k)
        for rows in numbers_of_rows:
            _compare(device, Call(dtype, rows), weights, seed=rows)


@pytest.mark.parametrize("kind", KINDS, ids=said)
def test_each_weight_meets_its_input(device: Device, kind: Any) -> None:
    """Rows with a single 1 give columns of the matrix, to the last bit."""
    n, k = 23, 96
    weight = _weights(device, np.random.default_rng(2), kind, [n], k)
    columns = rounded(weight[0].numbers().T, "float16")
    for rows in (3, 8, 64):
        for first in range(0, k, rows):
            x = np.eye(k, dtype=np.float32)[first : first + rows]
            out = _run(device, Call("float16", len(x)), weight, x, None)
            np.testing.assert_array_equal(out, columns[first : first + rows])


@pytest.mark.parametrize("kind", [INT4, INT8, packing.Packing("int8", 32)], ids=said)
@pytest.mark.parametrize("rows", [1, 6, 12, 31, 50])
def test_several_weights_side_by_side(device: Device, kind: Any, rows: int) -> None:
    weights = _weights(device, np.random.default_rng(3), kind, [48, 17, 5, 16], 128)
    plain = _compare(device, Call("bfloat16", rows), weights)
    np.testing.assert_array_equal(plain, _compare(device, Call("bfloat16", rows, x_gap=3, out_gap=7), weights))
    apart = _compare(device, Call("bfloat16", rows, x_gap=64, out_gap=1, residual=True), weights)
    inside = _compare(device, Call("bfloat16", rows, out_gap=2, residual=True, in_place=True), weights)
    np.testing.assert_array_equal(apart, inside)


@pytest.mark.parametrize(
    ("rows", "n", "k"), [(2, 16, 16384), (7, 20, 16384), (10, 33, 3000), (20, 16, 2048), (64, 16, 2112)]
)
def test_blocks_that_share_the_inputs(device: Device, rows: int, n: int, k: int) -> None:
    """Few outputs and many inputs: sums of several blocks meet in the workspace."""
    for kind in (INT4, INT8):
        weights = _weights(device, np.random.default_rng(4), kind, [n, 3], k)
        _compare(device, Call("bfloat16", rows, residual=True), weights)


@pytest.mark.parametrize("n", [150, 660, 2610])
def test_many_outputs_for_one_row(device: Device, n: int) -> None:
    """Pairs of panels, fewer warps to each, and in the end several rounds."""
    weights = _weights(device, np.random.default_rng(5), INT4, [n], 320)
    _compare(device, Call("bfloat16", 1), weights)


@pytest.mark.parametrize("n", [130, 300])
def test_many_outputs_for_many_rows(device: Device, n: int) -> None:
    """Several tiles to a block."""
    weights = _weights(device, np.random.default_rng(6), INT8, [n], 64)
    for rows in (12, 24, 40):
        _compare(device, Call("float16", rows), weights)


def test_a_scale_that_is_no_number_spoils_its_output_alone(device: Device) -> None:
    matrix = packed.matrix(np.random.default_rng(7), INT4, 32, 128)
    matrix.scales[1, 0, 3] = np.nan
    for rows in (1, 8):
        x = np.ones((rows, 128), np.float32)
        out = _run(device, Call("bfloat16", rows), [packed.put(device, matrix)], x, None)
        assert np.flatnonzero(np.isnan(out[-1])).tolist() == [19]


def test_order_of_threads_does_not_matter(device: Device) -> None:
    weights = _weights(device, np.random.default_rng(8), INT4, [40], 2048)
    for rows in (1, 20):
        first = _compare(device, Call("bfloat16", rows), weights)
        with device.other_order():
            second = _compare(device, Call("bfloat16", rows), weights)
        np.testing.assert_array_equal(first, second)


def test_what_is_not_supported_is_said(device: Device) -> None:
    weight = _weights(device, np.random.default_rng(9), INT8, [16], 64)[0]
    x, out = device.empty((64, 64), "bfloat16"), device.empty((64, 16), "bfloat16")

    def said_of(dtype: str = "bfloat16", rows: int = 1, count: int = 1, offset: int = 0, **changed: Any) -> str:
        structs = (LinearWeight * 9)(*[weight.struct] * 9)
        for name, value in changed.items():
            setattr(structs[0], name, value)
        params = LinearParams(CODES[dtype], x.pointer + offset, rows, 64, structs, count, None, out.pointer, 16)
        return device.status("linear", params)

    assert said_of() == "ok" and said_of(rows=0) == "ok"
    assert said_of(dtype="float32") == "unsupported"
    assert said_of(rows=65) == "unsupported"
    assert said_of(count=9) == "unsupported"
    assert said_of(offset=2) == "unsupported"
    assert said_of(dtype="bfloat16", group=16) == "unsupported"
    assert said_of(zeros=weight.struct.scales) == "unsupported"
    assert said_of(count=2, k=32) == "unsupported"


@pytest.mark.parametrize("kind", [INT4, INT8], ids=said)
def test_layers_of_real_models(device: Device, kind: Any) -> None:
    """On a GPU; compared at some of their outputs."""
    rng, r = np.random.default_rng(10), rounding("bfloat16")
    for n, k in LAYERS if device.real else [(192, 384)]:
        weight = packed.put(device, packed.large_matrix(rng, kind, n, k), rng.normal(size=n).astype(np.float32))
        assert weight.bias is not None
        parts = [slice(first, first + 64) for first in (0, n // 128 * 64, n - 64)]
        numbers = np.concatenate([weight.numbers(part.start, part.stop) for part in parts])
        bias = np.concatenate([weight.bias[part] for part in parts])
        for rows in (1, 2, 4, 8, 16, 32, 64):
            x = rounded(rng.normal(size=(rows, k)), "bfloat16")
            out = _run(device, Call("bfloat16", rows), [weight], x, None)
            assert np.isfinite(out).all()
            out = np.concatenate([out[:, part] for part in parts], axis=1)
            truth, naive = x.astype(np.float64) @ numbers.T + bias, r(x @ r(numbers).T + bias)
            assert_close(out, truth, naive, "bfloat16")
