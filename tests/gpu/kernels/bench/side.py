"""Memory of torch for the kernels: the GPU's, or with the emulated library the CPU's, through the same code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.gpu.kernels.bench import traffic
from tests.gpu.kernels.devices import Array, Device, TorchBuffer
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_linear import LinearWeight


class Side(Device):
    def __init__(self, library: Path, *, on_card: bool) -> None:
        super().__init__(library)
        self.real = on_card
        self.where = torch.device("cuda" if on_card else "cpu")

    @property
    def stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream) if self.real else 0

    def wait(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    def put(self, array: Array) -> TorchBuffer:
        return TorchBuffer(torch.from_numpy(np.array(array)).to(self.where))

    def empty(self, shape: tuple[int, ...] | int, dtype: str) -> TorchBuffer:
        return TorchBuffer(torch.zeros(shape, dtype=getattr(torch, dtype), device=self.where))

    def random(self, *shape: int, dtype: str = "bfloat16", scale: float = 1.0) -> TorchBuffer:
        """Normal with this deviation, or bytes of any value."""
        kind = getattr(torch, dtype)
        if kind.is_floating_point:
            return TorchBuffer(torch.randn(shape, dtype=kind, device=self.where).mul_(scale))
        limits = torch.iinfo(kind)
        return TorchBuffer(torch.randint(limits.min, limits.max + 1, shape, dtype=kind, device=self.where))


def packed_weight(side: Side, kind: Any, n: int, k: int) -> tuple[LinearWeight, list[TorchBuffer]]:
    """Random codes and scales of a packed matrix, and the memory they are in; products are of about 1."""
    shapes = kind.shapes(n, k)
    kept = {name: side.random(*shape, dtype=np.dtype(dtype).name) for name, (shape, dtype) in shapes.items()}
    kept["scales"].tensor.copy_(torch.full_like(kept["scales"].tensor, 1 / (74 if kind.kind == "int8" else 5) / k**0.5))
    if "zeros" in kept:
        kept["zeros"].tensor.fill_(8)
    struct = LinearWeight(CODES[kind.kind], n, k, kind.padded(k), kind.group)
    for name, buffer in kept.items():
        setattr(struct, name, buffer.pointer)
    return struct, list(kept.values())


def packing_of(kind: str) -> Any:
    return {"int8": traffic.INT8, "int4": traffic.INT4}[kind]
