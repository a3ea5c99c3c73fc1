"""Packed weights for tests, made by the reference of their layout, src/qvl/ops/packing.py."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_linear import LinearWeight

Array = npt.NDArray[Any]


def _load() -> ModuleType:
    """By its path, since importing qvl takes Paddle."""
    path = Path(__file__).resolve().parents[3] / "src" / "qvl" / "ops" / "packing.py"
    spec = importlib.util.spec_from_file_location("packing_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


packing = _load()
KINDS = [packing.Packing("int8", group) for group in (0, *packing.GROUPS)]
KINDS += [packing.Packing("int4", group, symmetric) for group in packing.GROUPS for symmetric in (True, False)]


def said(kind: Any) -> str:
    return f"{kind.kind}-{kind.group}{'' if kind.symmetric else '-zeros'}"


@dataclass
class Weight:
    """On the device, and as numbers."""

    matrix: Any  # PackedMatrix
    struct: LinearWeight
    bias: Array | None
    buffers: list[Any] = field(default_factory=list)

    def numbers(self, first: int = 0, last: int | None = None) -> npt.NDArray[np.float64]:
        return packing.unpack(self.matrix, first, last).astype(np.float64)


def matrix(rng: np.random.Generator, kind: Any, n: int, k: int) -> Any:
    """Random codes over their whole range, with scales of both signs that make products of about 1."""
    low, high = (-128, 128) if kind.kind == "int8" else (0, 16)
    codes = rng.integers(low, high, (n, k), dtype=np.int16)
    groups = kind.padded(k) // kind.group if kind.group else 1
    scales = rng.uniform(0.5, 2, (n, groups)) * rng.choice((-1.0, 1.0), (n, groups)) / (high * np.sqrt(k))
    zeros = None if kind.symmetric else rng.integers(0, 17, (n, groups), dtype=np.uint8)
    return packing.lay_out(codes, kind, scales.astype(np.float32), zeros)


def large_matrix(rng: np.random.Generator, kind: Any, n: int, k: int) -> Any:
    """The same in no time, for k that is not padded: bytes are codes already."""
    assert kind.padded(k) == k
    arrays = {}
    for name, (shape, dtype) in kind.shapes(n, k).items():
        if name == "scales":
            arrays[name] = (rng.uniform(0.5, 2, shape) / (16 * np.sqrt(k))).astype(dtype)
        elif name == "zeros":
            arrays[name] = rng.integers(0, 17, shape, dtype=np.uint8)
        else:
            arrays[name] = np.frombuffer(rng.bytes(int(np.prod(shape))), dtype=dtype).reshape(shape)
    return packing.PackedMatrix(kind, n, k, **arrays)


def put(device: Device, matrix: Any, bias: Array | None = None) -> Weight:
    buffers = {name: getattr(matrix, name) for name in ("data", "scales", "zeros")}
    kept = {name: device.put(array) for name, array in {**buffers, "bias": bias}.items() if array is not None}
    kind = matrix.packing
    sizes = (CODES[kind.kind], matrix.n, matrix.k, kind.padded(matrix.k), kind.group)
    struct = LinearWeight(*sizes, **{name: buffer.pointer for name, buffer in kept.items()})
    return Weight(matrix, struct, bias, list(kept.values()))
