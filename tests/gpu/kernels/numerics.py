"""Rounding to 16-bit floats, and how far from the truth a result may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
# Bits of the significand, the leading one included, and the exponent of the least normal number.
_FORMATS = {"float32": (24, -126), "bfloat16": (8, -126), "float16": (11, -14)}
DTYPES = ("bfloat16", "float16", "float32")
CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}


def bfloat16_bits(array: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Of the nearest bfloat16, ties to even. What is no number stays none."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    near = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FFF), near).astype(np.uint16)


def from_bfloat16_bits(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(array: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float32]:
    """As float32, what `dtype` makes of it."""
    array = np.asarray(array, dtype=np.float32)
    if dtype == "bfloat16":
        return from_bfloat16_bits(bfloat16_bits(array))
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32) if dtype == "float16" else array


def rounding(dtype: str) -> Callable[[npt.ArrayLike], npt.NDArray[np.float32]]:
    """r for naive computations: r(r(a * b) + c) is what eager code in `dtype` gives."""
    return lambda array: rounded(array, dtype)


def unit(array: Floats, dtype: str) -> Floats:
    """The distance of neighbouring numbers of `dtype` at each element."""
    digits, least = _FORMATS[dtype]
    _, exponent = np.frexp(np.abs(array))  # 0.5 <= fraction < 1
    exponent = np.where(array == 0, least, np.maximum(exponent - 1, least))
    return np.ldexp(1.0, exponent - (digits - 1))


def assert_close(actual: Floats, truth: Floats, naive: Floats, dtype: str, *, by_row: bool = True) -> None:
    """Errors, in the largest and in the mean square, are at most twice those of the naive computation.

    Truth is float64 (or float32), for the operands as rounded to `dtype`; naive rounds to `dtype` after every step. An
    error below one unit in the last place of `dtype` counts as none. `by_row` looks at every row by itself, where rows
    have 32 elements or more; not in float32, where kernel and naive computation round alike and the largest error of a
    row is chance. Raises AssertionError.
    """
    assert actual.shape == truth.shape == naive.shape, (actual.shape, truth.shape, naive.shape)
    actual, truth, naive = (np.asarray(array, dtype=np.float64) for array in (actual, truth, naive))
    assert np.isfinite(truth).all() and np.isfinite(naive).all(), "the reference itself is not finite"
    assert np.isfinite(actual).all(), f"{np.count_nonzero(~np.isfinite(actual))} elements are not finite numbers"
    if actual.size == 0:
        return
    error, allowed = np.abs(actual - truth), np.abs(naive - truth)
    error = np.where(error <= unit(truth, dtype), 0.0, error)
    if not (by_row and dtype != "float32" and actual.ndim > 1 and actual.shape[-1] >= 32):
        error, allowed = error.reshape(1, -1), allowed.reshape(1, -1)
    for name, of in (("largest", _largest), ("mean square", _mean_square)):
        excess = of(error) - 2 * of(allowed)
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        assert excess[worst] <= 0, (
            f"{name} error {of(error)[worst]:.3g}, of the naive computation {of(allowed)[worst]:.3g}"
            f" (row {tuple(map(int, worst))}, {np.count_nonzero(error)} of {error.size} elements beyond a unit)"
        )


def assert_rounded_once(actual: Floats, truth: Floats, dtype: str) -> None:
    """The nearest number of a 16-bit `dtype`, but for what float32 arithmetic leaves open. Raises AssertionError."""
    if dtype == "float32":
        return
    excess = np.abs(actual.astype(np.float64) - truth) - 0.5 * unit(truth, dtype)
    beyond = excess > 4e-6 * (1.0 + np.abs(truth))
    assert not beyond.any(), f"{np.count_nonzero(beyond)} of {beyond.size} elements are rounded more than once"


def _largest(errors: Floats) -> Floats:
    return errors.max(axis=-1)


def _mean_square(errors: Floats) -> Floats:
    return np.sqrt(np.mean(errors**2, axis=-1))
