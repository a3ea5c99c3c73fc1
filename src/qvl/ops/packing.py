"""The formats of packed weights, quantised and laid out in NumPy: the reference of ext/cpu/linear_pack_kernels.cc.

A matrix [n, k] (outputs, inputs) is stored in panels of 16 outputs, so that a kernel of any width reads its weights in
one stream, and a file of them is mapped and used as it lies. docs/quantization.md describes the bytes. No Paddle here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["bf16", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("bf16", "int8", "int4")
GROUPS = (32, 64, 128)
PANEL = 16

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Packing:
    """How a matrix is stored. group: inputs that share a scale; 0 is one scale an output (int8) or none (bf16).

    symmetric: int4 only; without it each group has a zero point of its own. Raises ValueError for what does not exist.
    """

    kind: Kind
    group: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"packing: kind must be one of {', '.join(KINDS)}, not {self.kind}")
        allowed = {"bf16": (0,), "int8": (0, *GROUPS), "int4": GROUPS}[self.kind]
        if self.group not in allowed:
            raise ValueError(f"packing: group of {self.kind} must be one of {allowed}, not {self.group}")
        if not self.symmetric and self.kind != "int4":
            raise ValueError(f"packing: {self.kind} is always symmetric")

    def padded(self, k: int) -> int:
        """Inputs stored for k: a multiple of 32 (bf16), or of 64 and the group."""
        unit = 32 if self.kind == "bf16" else max(64, self.group)
        return -(-k // unit) * unit

    def shapes(self, n: int, k: int) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
        """Shape and dtype of each array that a matrix [n, k] becomes: data, and as needed scales and zeros."""
        panels, padded = -(-n // PANEL), self.padded(k)
        if self.kind == "bf16":
            return {"data": ((panels, padded // 2, PANEL, 2), np.uint16)}
        per_byte, dtype = (4, np.int8) if self.kind == "int8" else (8, np.uint8)
        shapes: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "data": ((panels, padded // per_byte, PANEL, 4), dtype)
        }
        if not self.group:
            return {**shapes, "scales": ((panels, PANEL), np.float32)}
        shapes["scales"] = ((panels, padded // self.group, PANEL), np.float16)
        if not self.symmetric:
            shapes["zeros"] = (shapes["scales"][0], np.uint8)
        return shapes


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix [n, k] in panels. The arrays may be mapped from a file; they are not written to."""

    packing: Packing
    n: int
    k: int
    data: Array
    scales: Array | None = None
    zeros: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        shapes = self.packing.shapes(self.n, self.k)
        for name in ("data", "scales", "zeros"):
            array: Array | None = getattr(self, name)
            if (array is None) != (name not in shapes):
                raise ValueError(f"packed matrix: {name} {'is missing' if array is None else 'has no use here'}")
            if array is not None and (array.shape, array.dtype) != (shapes[name][0], np.dtype(shapes[name][1])):
                raise ValueError(
                    f"packed matrix: {name} is {array.dtype} {list(array.shape)}, "
                    f"{np.dtype(shapes[name][1])} {list(shapes[name][0])} is needed"
                )

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.data, self.scales, self.zeros) if array is not None)


def to_bfloat16(x: Floats) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> Floats:
    """float32 from the bits of bfloat16. Shape kept."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack(source: Array, packing: Packing) -> PackedMatrix:
    """Quantise and lay out a matrix [n, k]: float32, or bfloat16 as uint16; any strides."""
    x = from_bfloat16(source) if source.dtype == np.uint16 else np.asarray(source, dtype=np.float32)
    n, k = x.shape
    if packing.kind == "bf16":
        return lay_out(to_bfloat16(x), packing)
    padded = np.zeros((n, packing.padded(k)), np.float32)
    padded[:, :k] = x
    groups = padded.reshape(n, -1, packing.group or padded.shape[1])
    finite = np.isfinite(groups).all(axis=-1)
    groups = np.where(finite[..., None], groups, np.float32(0))
    zeros = np.zeros(finite.shape, np.uint8)
    if packing.kind == "int8":
        scales = np.abs(groups).max(axis=-1) / np.float32(127)
    elif packing.symmetric:
        scales, zeros = symmetric_scales(groups), zeros + np.uint8(8)
    else:
        scales, zeros = asymmetric_scales(groups)
    scales = np.where(finite, scales, np.float32(np.nan)).astype(np.float16 if packing.group else np.float32)
    wide = scales.astype(np.float32)
    usable = np.abs(wide) > 1e-30
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=usable)
    low, high = (-127, 127) if packing.kind == "int8" else (0, 15)
    codes = np.clip(np.rint(groups * inverse[..., None]) + zeros[..., None].astype(np.float32), low, high)
    codes = codes.astype(np.int8).reshape(n, -1)[:, :k]
    return lay_out(codes, packing, scales, None if packing.symmetric else zeros)


def symmetric_scales(groups: Floats) -> Floats:
    """For codes -8 to 7 of groups [..., size]: the candidate scale with the smallest squared error."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    magnitude = np.abs(largest)
    largest = np.where((groups == -magnitude[..., None]).any(axis=-1), -magnitude, magnitude)
    alive = magnitude >= 1e-30
    safe = np.where(alive, largest, np.float32(1))
    best_scale, best = (-safe / np.float32(8)).astype(np.float32), np.full(safe.shape, -1, np.float32)
    for step in range(-4, 5):
        inverse = (np.float32(-(8 + 0.25 * step)) / safe)[..., None]
        codes = np.clip(np.rint(groups * inverse), -8, 7).astype(np.float32)
        product, square = (codes * groups).sum(axis=-1), (codes * codes).sum(axis=-1)
        better = (square > 0) & (product * product > best * square)
        fitting = np.divide(product, square, out=np.zeros_like(product), where=square > 0)
        best = np.where(better, product * fitting, best)
        best_scale = np.where(better, fitting, best_scale)
    return np.where(alive, best_scale, np.float32(0))


def asymmetric_scales(groups: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """For codes 0 to 15: scale and zero point of the candidate range with the smallest squared error."""
    low = np.minimum(groups.min(axis=-1), np.float32(0))
    high = np.maximum(groups.max(axis=-1), np.float32(0))
    best_scale, best = np.zeros_like(low), np.full(low.shape, np.inf, np.float32)
    best_zero = np.full(low.shape, 8, np.float32)
    for step in range(6):
        share = np.float32(1 - 0.05 * step)
        scale = (share * (high - low) / np.float32(15)).astype(np.float16).astype(np.float32)
        usable = (high - low >= 1e-30) & (scale > 0)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)
        zero = np.clip(np.rint(-share * low * inverse), 0, 15)
        codes = np.clip(np.rint(groups * inverse[..., None]) + zero[..., None], 0, 15)
        error = ((groups - (codes - zero[..., None]) * scale[..., None]) ** 2).sum(axis=-1)
        better = usable & (error < best)
        best, best_scale = np.where(better, error, best), np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
    return best_scale, best_zero.astype(np.uint8)


def lay_out(
    codes: Array, packing: Packing, scales: Array | None = None, zeros: npt.NDArray[np.uint8] | None = None
) -> PackedMatrix:
    """Lay out what is quantised already: codes [n, k] (uint16 bits of bf16, -128..127 or 0..15), scales and zeros
    [n, groups] with groups covering the padded inputs, or [n, 1] for one scale an output. Other quantisers' checkpoints
    come in here.
    """
    n, k = codes.shape
    panels, padded = -(-n // PANEL), packing.padded(k)
    full = np.full(
        (panels * PANEL, padded), 8 if packing.kind == "int4" else 0, np.uint16 if packing.kind == "bf16" else np.int8
    )
    full[:n, :k] = codes
    if zeros is not None and padded > k:
        full[:n, k:] = np.repeat(zeros, packing.group, axis=1)[:, k:]
    run = {"bf16": 2, "int8": 4, "int4": 8}[packing.kind]
    data = full.reshape(panels, PANEL, padded // run, run).transpose(0, 2, 1, 3)
    if packing.kind == "int4":
        nibbles = data.astype(np.uint8)
        data = nibbles[..., :4] | nibbles[..., 4:] << np.uint8(4)
    shapes = packing.shapes(n, k)
    return PackedMatrix(
        packing,
        n,
        k,
        np.ascontiguousarray(data),
        None if scales is None else _panels_of(scales, shapes["scales"], 0),
        None if zeros is None else _panels_of(zeros, shapes["zeros"], 8),
    )


def _panels_of(values: Array, wanted: tuple[tuple[int, ...], npt.DTypeLike], rest: int) -> Array:
    """[n, groups] to [panels, groups, 16], or [n, 1] to [panels, 16]; `rest` for outputs that do not exist."""
    shape, dtype = wanted
    full = np.full((shape[0] * PANEL, values.shape[1]), rest, dtype)
    full[: values.shape[0]] = values
    return np.ascontiguousarray(full.reshape(shape[0], PANEL, -1).transpose(0, 2, 1)).reshape(shape)


def unpack(matrix: PackedMatrix, first: int = 0, last: int | None = None) -> Floats:
    """Rows first to last of the matrix as float32 [last - first, k]."""
    last = matrix.n if last is None else min(last, matrix.n)
    if last <= first:
        return np.zeros((0, matrix.k), np.float32)
    packing, panels = matrix.packing, slice(first // PANEL, -(-last // PANEL))
    data = matrix.data[panels]
    if packing.kind == "int4":
        data = np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=-1)
    rows = data.transpose(0, 2, 1, 3).reshape(data.shape[0] * PANEL, -1)
    if packing.kind == "bf16":
        wide = from_bfloat16(rows)
    else:
        assert matrix.scales is not None
        scales = matrix.scales[panels].astype(np.float32).reshape(data.shape[0], -1, PANEL)
        scales = scales.transpose(0, 2, 1).reshape(len(rows), -1, 1)
        wide = rows.astype(np.float32).reshape(len(rows), scales.shape[1], -1)
        if matrix.zeros is not None:
            wide -= matrix.zeros[panels].transpose(0, 2, 1).reshape(len(rows), -1, 1)
        elif packing.kind == "int4":
            wide -= 8
        wide = (wide * scales).reshape(len(rows), -1)
    start = panels.start * PANEL
    return np.ascontiguousarray(wide[first - start : last - start, : matrix.k])
