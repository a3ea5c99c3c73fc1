"""Attention of one new token a sequence to its cache, beside torch's flash attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.kernels.bench import calls, traffic
from tests.gpu.kernels.bench.calls import Heads, Sequences
from tests.gpu.kernels.bench.cases import Case, Operands
from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.sizes import Model, Sizes
from tests.gpu.kernels.caches import Cache
from tests.gpu.kernels.devices import TorchBuffer

DTYPE = "bfloat16"
MOST = 12 << 30  # bytes of keys and values


def cases(side: Side, sizes: Sizes) -> Iterator[Case]:
    free = torch.cuda.mem_get_info()[0] if side.real else MOST
    for model in sizes.models:
        for context in sizes.contexts:
            for batch in sizes.few:
                if 3 * traffic.attention(model, batch, context, DTYPE) > min(free, 3 * MOST):
                    continue
                yield _attention(side, model, batch, context, DTYPE)
                if batch != 8 and model.name != "72B":
                    yield _attention(side, model, batch, context, "int8")


def _attention(side: Side, model: Model, batch: int, context: int, storage: str) -> Case:
    heads = Heads(model.heads, model.kv_heads, model.dim)
    shape = (batch, context, model.kv_heads, model.dim)
    group = model.heads // model.kv_heads

    def make() -> Operands:
        q, out = side.random(batch, model.heads, model.dim), side.empty((batch, model.q_width), DTYPE)
        k, v = side.random(*shape, dtype=storage), side.random(*shape, dtype=storage)
        narrow = storage == "int8"
        scales = [_filled(side, shape[:3], 0.01) if narrow else None for _ in range(2)]
        caches = [Cache(*(x and TorchBuffer(x.tensor[i]) for x in (k, v, *scales))) for i in range(batch)]
        starts = TorchBuffer(torch.full((batch,), context - 1, dtype=torch.int32, device=side.where))
        sequences = Sequences(caches, [1] * batch, starts, storage, context)
        ours = calls.attention(side, DTYPE, heads, q, out, sequences)
        # Of an int8 cache torch is given the same numbers in 16 bits.
        wide = [(side.random(*shape) if narrow else x).tensor.transpose(1, 2) for x in (k, v)]
        results = () if narrow else (out.tensor.view(batch, model.heads, 1, model.dim),)
        return Operands(ours, (q.tensor.unsqueeze(2), *wide), results)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = q.view(batch, model.kv_heads, group, model.dim)
        weights = torch.softmax((rows @ k.transpose(-1, -2)) * model.dim**-0.5, dim=-1)
        return (weights @ v).view(batch, model.heads, 1, model.dim)

    size = traffic.attention(model, batch, context, storage)
    label = f"{batch} x {context} keys{'' if storage == DTYPE else ', int8 cache'}"
    peers: dict[str, Any] = {"flash": flash, "eager": eager}
    return Case("attention", model.name, label, size, make, peers)


def _filled(side: Side, shape: tuple[int, ...], value: float) -> TorchBuffer:
    return TorchBuffer(torch.full(shape, value, dtype=torch.float32, device=side.where))
