"""Packed weights as numbers: whole matrices, and rows of them as token vectors are."""

from __future__ import annotations

from ctypes import pointer
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels import packed
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, rounded
from tests.gpu.kernels.packed import KINDS, Weight, packing, said
from tests.gpu.kernels.structs_linear import UnpackParams

SMALL = [(40, 200), (16, 64), (35, 193), (17, 1100)]
LARGE = [(4608, 3584), (8192, 29568), (151936, 1536), (1000, 1001)]


def _unpack(device: Device, weight: Weight, dtype: str, rows: npt.NDArray[np.int64] | None, count: int) -> Any:
    out = device.empty((count, weight.struct.k), dtype)
    which = None if rows is None else device.put(rows)
    params = UnpackParams(
        CODES[dtype], pointer(weight.struct), None if which is None else which.pointer, count, out.pointer
    )
    device.call("unpack", params)
    return out.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=said)
def test_rows_are_the_numbers_that_were_packed(device: Device, kind: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for n, k in SMALL:
        weight = packed.put(device, packed.matrix(rng, kind, n, k))
        numbers = rounded(packing.unpack(weight.matrix), dtype)
        np.testing.assert_array_equal(_unpack(device, weight, dtype, None, n), numbers)
        np.testing.assert_array_equal(_unpack(device, weight, dtype, None, n - 5), numbers[:-5])
        rows = rng.integers(0, n, 9)
        np.testing.assert_array_equal(_unpack(device, weight, dtype, rows, 9), numbers[rows])


@pytest.mark.parametrize("kind", [packing.Packing("int8"), packing.Packing("int4", 64, symmetric=False)], ids=said)
def test_matrices_of_real_models(device: Device, kind: Any) -> None:
    """On a GPU; compared at some rows."""
    rng = np.random.default_rng(2)
    for n, k in LARGE if device.real else [(100, 2048)]:
        make = packed.large_matrix if kind.padded(k) == k else packed.matrix
        weight = packed.put(device, make(rng, kind, n, k))
        out = _unpack(device, weight, "bfloat16", None, n)
        for first in (0, n // 2, n - 50):
            numbers = rounded(packing.unpack(weight.matrix, first, first + 50), "bfloat16")
            np.testing.assert_array_equal(out[first : first + 50], numbers)
        rows = rng.integers(0, n, 64)
        np.testing.assert_array_equal(_unpack(device, weight, "bfloat16", rows, 64), out[rows])


def test_what_is_not_supported_is_said(device: Device) -> None:
    weight = packed.put(device, packed.matrix(np.random.default_rng(3), packing.Packing("int8"), 16, 64))
    out = device.empty((16, 64), "float32")

    def said_of(dtype: str = "float32", count: int = 16, **changed: Any) -> str:
        struct = type(weight.struct).from_buffer_copy(weight.struct)
        for name, value in changed.items():
            setattr(struct, name, value)
        return device.status("unpack", UnpackParams(CODES[dtype], pointer(struct), None, count, out.pointer))

    assert said_of() == "ok" and said_of(count=0) == "ok"
    assert said_of(dtype="int8") == "unsupported"
    assert said_of(count=17) == "unsupported"
    assert said_of(group=16) == "unsupported"
    assert said_of(dtype="float32", data=weight.struct.data + 4) == "unsupported"
