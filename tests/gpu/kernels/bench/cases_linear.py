"""Quantised linear layers beside cuBLAS with the weights in 16 bits, and their widening."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.kernels.bench import calls, traffic
from tests.gpu.kernels.bench.calls import Launch
from tests.gpu.kernels.bench.cases import Case, Operands
from tests.gpu.kernels.bench.side import Side, packed_weight, packing_of
from tests.gpu.kernels.bench.sizes import Model, Sizes
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_linear import LinearWeight, UnpackParams

DTYPE = "bfloat16"


def cases(side: Side, sizes: Sizes) -> Iterator[Case]:
    for model in sizes.models:
        layers = model.products
        if model.name == "72B":
            layers = {name: layers[name] for name in ("gate_up", "down")}
        for kind in ("int4", "int8"):
            for name, (n, k) in layers.items():
                for rows in sizes.few:
                    yield _linear(side, model, (kind, name), (n, k), rows)
        if model.name != "72B":
            for rows in sizes.few:
                yield _linear(side, model, ("int8", "head"), (model.vocab, model.hidden), rows)
            for kind in ("int4", "int8"):
                yield _unpack(side, model, kind, *layers["gate_up"])


def _linear(side: Side, model: Model, said: tuple[str, str], size: tuple[int, int], rows: int) -> Case:
    """said: kind of weight and name of the layer."""
    kind, layer = said
    n, k = size

    def make() -> Operands:
        weight, kept = packed_weight(side, packing_of(kind), n, k)
        x, out = side.random(rows, k), side.empty((rows, n), DTYPE)
        launch = calls.linear(side, DTYPE, rows, [weight], x, out).keeping(kept)
        return Operands(launch, (x.tensor, side.random(n, k, scale=k**-0.5).tensor))

    moved = traffic.product(traffic.packed(packing_of(kind), n, k), rows, n, k)
    label = f"{kind} {layer}, {rows} rows"
    return Case("linear", model.name, label, moved, make, {"cublas": F.linear}, flops=2 * rows * n * k)


def _unpack(side: Side, model: Model, kind: str, n: int, k: int) -> Case:
    packing = packing_of(kind)

    def make() -> Operands:
        weight, kept = packed_weight(side, packing, n, k)
        structs = (LinearWeight * 1)(weight)
        out = side.empty((n, k), DTYPE)
        params = UnpackParams(CODES[DTYPE], ctypes.cast(structs, ctypes.POINTER(LinearWeight)), None, n, out.pointer)
        groups = side.random(n, k // (packing.group or k), 1, scale=1e-2)
        codes = side.random(n, k // (packing.group or k), packing.group or k, dtype="int8")
        return Operands(Launch(side, "unpack", params, structs, kept, out), (codes.tensor, groups.tensor))

    def eager(codes: Tensor, scales: Tensor) -> Tensor:
        return codes.to(torch.bfloat16) * scales

    moved = traffic.packed(packing, n, k) + traffic.dense(n, k)
    peers = {"eager": eager} if kind == "int8" else {}
    return Case("unpack", model.name, f"{kind} gate_up", moved, make, peers, compiled=eager if peers else None)
