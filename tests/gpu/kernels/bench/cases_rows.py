"""Norms, gates and rotary embeddings: ops that do little more than move rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.kernels.bench import calls, traffic
from tests.gpu.kernels.bench.calls import Heads, Launch, Sequences
from tests.gpu.kernels.bench.cases import Case, Operands
from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.sizes import Model, Sizes
from tests.gpu.kernels.caches import Cache
from tests.gpu.kernels.devices import TorchBuffer
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_activation import ActivationGradParams, ActivationParams
from tests.gpu.kernels.structs_norm import NormGradParams, NormParams
from tests.gpu.kernels.structs_rotary import RotateParams

DTYPE = "bfloat16"
CODE = CODES[DTYPE]


def cases(side: Side, sizes: Sizes) -> Iterator[Case]:
    most = sizes.many[-1]
    for model in sizes.models:
        for rows in (*sizes.few, *sizes.many):
            yield _rms_norm(side, model, rows)
        for rows in (*sizes.few, most):
            yield _swiglu(side, model, rows)
            yield _rotary_store(side, model, (1, rows) if rows == most else (rows, 1), DTYPE)
        yield _rotary_store(side, model, (sizes.few[-1], 1), "int8")
    for model in sizes.steps:
        yield _rms_norm_grad(side, model, most)
        yield _swiglu_grad(side, model, most)
    yield _layer_norm(side, sizes, most)
    yield _quick_gelu(side, sizes, most)
    yield _rotate(side, sizes, most)


def _rms_norm(side: Side, model: Model, rows: int) -> Case:
    width = model.hidden

    def make() -> Operands:
        x, delta, weight = side.random(rows, width), side.random(rows, width, scale=1e-3), side.random(width)
        out = side.empty((rows, width), DTYPE)
        ours = calls.rms_norm(side, DTYPE, (rows, width), x, weight, out, delta)
        return Operands(ours, (x.tensor, delta.tensor, weight.tensor), (x.tensor, out.tensor))

    def eager(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + delta
        return total, F.rms_norm(total, (width,), weight, 1e-6)

    size = traffic.rms_norm(rows, width)
    return Case("rms_norm", model.name, f"{rows} rows", size, make, {"eager": eager}, compiled=eager)


def _rms_norm_grad(side: Side, model: Model, rows: int) -> Case:
    width = model.hidden

    def make() -> Operands:
        x, weight, grad = side.random(rows, width), side.random(width), side.random(rows, width)
        made, of_weight = side.empty((rows, width), DTYPE), side.empty((width,), "float32")
        params = NormGradParams(CODE, x.pointer, weight.pointer, grad.pointer, None, made.pointer, of_weight.pointer)
        params.rows, params.width, params.epsilon = rows, width, 1e-6
        launch = _norm_grad_launch(side, params, x, weight, grad, made, of_weight)
        return Operands(launch, (x.tensor, weight.tensor, grad.tensor), (made.tensor, of_weight.tensor))

    def eager(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        # The backward pass alone, for which ours keeps nothing of the forward one.
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        normed, outer = x * scale, grad * weight
        of_x = scale * (outer - normed * (outer * normed).mean(-1, keepdim=True))
        return of_x.to(x.dtype), (grad * normed).sum(0)

    size = traffic.norm_grad(rows, width)
    return Case("rms_norm_grad", model.name, f"{rows} rows", size, make, {"eager": eager}, compiled=eager)


def _norm_grad_launch(side: Side, params: NormGradParams, *kept: Any) -> Launch:
    memory = side.workspace("norm_grad", params)
    params.workspace = memory.pointer if memory else None
    return Launch(side, "rms_norm_grad", params, memory, *kept)


def _swiglu(side: Side, model: Model, rows: int) -> Case:
    width = model.inner

    def make() -> Operands:
        both, out = side.random(rows, 2 * width), side.empty((rows, width), DTYPE)
        return Operands(calls.swiglu(side, DTYPE, (rows, width), both, out), (both.tensor,), (out.tensor,))

    def eager(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    size = traffic.swiglu(rows, width)
    return Case("swiglu", model.name, f"{rows} rows", size, make, {"eager": eager}, compiled=eager)


def _swiglu_grad(side: Side, model: Model, rows: int) -> Case:
    width = model.inner

    def make() -> Operands:
        x, up, grad = (side.random(rows, width) for _ in range(3))
        made = [side.empty((rows, width), DTYPE) for _ in range(2)]
        pointers = (buffer.pointer for buffer in (x, up, grad, *made))
        params = ActivationGradParams(CODE, *pointers, rows, width, width)
        launch = Launch(side, "swiglu_grad", params, x, up, grad, *made)
        return Operands(launch, (x.tensor, up.tensor, grad.tensor), tuple(buffer.tensor for buffer in made))

    def eager(x: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(x.float())
        return (grad * up * (s * (1 + x * (1 - s)))).to(x.dtype), (grad * (x * s)).to(x.dtype)

    size = traffic.swiglu_grad(rows, width)
    return Case("swiglu_grad", model.name, f"{rows} rows", size, make, {"eager": eager}, compiled=eager)


def _quick_gelu(side: Side, sizes: Sizes, rows: int) -> Case:
    width = sizes.vision.inner

    def make() -> Operands:
        x, out = side.random(rows, width), side.empty((rows, width), DTYPE)
        params = ActivationParams(CODE, x.pointer, None, out.pointer, rows, width, width, width)
        return Operands(Launch(side, "quick_gelu", params, x, out), (x.tensor,), (out.tensor,))

    def eager(x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    size = traffic.quick_gelu(rows, width)
    return Case("quick_gelu", "vision", f"{rows} rows", size, make, {"eager": eager}, compiled=eager)


def _layer_norm(side: Side, sizes: Sizes, rows: int) -> Case:
    width = sizes.vision.hidden

    def make() -> Operands:
        x, weight, bias = side.random(rows, width), side.random(width), side.random(width)
        gather = TorchBuffer(torch.randperm(rows, device=side.where))
        out = side.empty((rows, width), DTYPE)
        params = NormParams(CODE, x.pointer, weight=weight.pointer, bias=bias.pointer, gather=gather.pointer)
        params.out, params.rows, params.width, params.epsilon = out.pointer, rows, width, 1e-6
        launch = Launch(side, "layer_norm", params, x, weight, bias, gather, out)
        return Operands(launch, (x.tensor, gather.tensor, weight.tensor, bias.tensor), (out.tensor,))

    def eager(x: Tensor, gather: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x[gather], (width,), weight, bias, 1e-6)

    size = traffic.layer_norm(rows, width)
    return Case("layer_norm", "vision", f"{rows} patches, merged", size, make, {"eager": eager}, compiled=eager)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, dim], tables [rows, dim / 2]."""
    first, second = x.float().chunk(2, dim=-1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(x.dtype)


def _rotate(side: Side, sizes: Sizes, rows: int) -> Case:
    heads, dim = 2 * sizes.vision.heads, sizes.vision.dim

    def make() -> Operands:
        x = side.random(rows, heads, dim)
        cos, sin = (side.random(rows, dim // 2, dtype="float32", scale=0.1) for _ in range(2))
        params = RotateParams(CODE, x.pointer, cos.pointer, sin.pointer, rows, heads, dim, heads * dim)
        return Operands(Launch(side, "rotate", params, x, cos, sin), (x.tensor, cos.tensor, sin.tensor), (x.tensor,))

    size = traffic.rotate(rows, heads, dim)
    return Case("rotate", "vision", f"{rows} patches", size, make, {"eager": _turned}, compiled=_turned)


def _rotary_store(side: Side, model: Model, new: tuple[int, int], storage: str) -> Case:
    """new: sequences, and new tokens of each."""
    heads, rows = Heads(model.heads, model.kv_heads, model.dim), new[0] * new[1]
    shape = (*new, model.kv_heads, model.dim)
    widths = [model.q_width, model.kv_width, model.kv_width]

    def make() -> Operands:
        qkv, bias = side.random(rows, heads.width), side.random(heads.width)
        cos, sin = (side.random(rows, model.dim // 2, dtype="float32") for _ in range(2))
        k, v = (side.empty(shape, storage) for _ in range(2))
        scales = [side.empty(shape[:3], "float32") if storage == "int8" else None for _ in range(2)]
        caches = [Cache(*(x and TorchBuffer(x.tensor[i]) for x in (k, v, *scales))) for i in range(shape[0])]
        starts = TorchBuffer(torch.zeros(shape[0], dtype=torch.int32, device=side.where))
        sequences = Sequences(caches, [new[1]] * new[0], starts, storage, new[1])
        out = side.empty((rows, model.q_width), DTYPE)
        ours = calls.rotary_store(side, DTYPE, heads, qkv, bias, (cos, sin), out, sequences)
        slots = torch.arange(rows, device=side.where)
        caches_of_peer = (x.tensor.view(rows, *shape[2:]) for x in (k, v))
        given = (qkv.tensor, bias.tensor, cos.tensor, sin.tensor, slots, *caches_of_peer)
        return Operands(ours, given, (out.tensor.view(rows, model.heads, model.dim),))

    def eager(qkv: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.view(rows, -1, model.dim) for x in (qkv + bias).split(widths, dim=-1))
        of_q, of_k, of_v = parts
        k.index_copy_(0, slots, _turned(of_k, cos, sin))
        v.index_copy_(0, slots, of_v)
        return _turned(of_q, cos, sin)

    size = traffic.rotary_store(model, rows, storage)
    peers = {"eager": eager} if storage == DTYPE else {}
    label = f"{rows} rows{'' if storage == DTYPE else ', int8 cache'}"
    return Case("rotary_store", model.name, label, size, make, peers, compiled=eager if peers else None)
