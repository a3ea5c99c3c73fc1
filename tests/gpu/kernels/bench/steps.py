"""The decode step of whole language models with random weights, each in a graph that goes on by itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from tests.gpu.kernels.bench import peer, traffic
from tests.gpu.kernels.bench.side import Side, packed_weight, packing_of
from tests.gpu.kernels.bench.sizes import Model
from tests.gpu.kernels.bench.step import Layer, PackedProduct, Parts, Product, Run, Step, decode_step
from tests.gpu.kernels.bench.timing import Clock, Failure, Timing
from tests.gpu.kernels.caches import Cache
from tests.gpu.kernels.devices import TorchBuffer

DTYPE = "bfloat16"
KINDS = ("bfloat16", "int8", "int4")
SPARE = 512  # tokens that a context may grow by while it is timed


@dataclass
class DenseProduct:
    """cuBLAS, with weights in 16 bits: [sum of outputs, inputs]."""

    weight: Any
    adds: bool = False

    @property
    def bytes(self) -> int:
        return int(self.weight.numel()) * traffic.HALF

    def bind(self, rows: int, x: Any, out: Any, residual: Any | None = None) -> Run:
        assert residual is None and x.tensor.shape[0] == rows
        return lambda: torch.mm(x.tensor, self.weight.t(), out=out.tensor)


class Maker:
    """Weights of a model. kind: of its layers; token vectors stay in 16 bits, a head beside packed layers is int8."""

    def __init__(self, side: Side, model: Model, kind: str) -> None:
        self.side, self.model, self.kind = side, model, kind
        self.table = side.random(model.vocab, model.hidden)
        self.norm = self._around_one(model.hidden)
        self.head = self.product((model.vocab,), model.hidden, "int8" if kind == "int4" else kind)
        if kind == "bfloat16" and model.tied:
            self.head = DenseProduct(self.table.tensor)
        self.layers = [self._layer() for _ in range(model.layers)]
        places = torch.arange(40000, dtype=torch.float32, device=side.where)[:, None]
        slopes = 1e6 ** -torch.linspace(0, 1, model.dim // 2 + 1, device=side.where)[:-1]
        self.cos, self.sin = (places * slopes).cos(), (places * slopes).sin()

    def _around_one(self, size: int) -> TorchBuffer:
        buffer = self.side.random(size, scale=0.1)
        buffer.tensor.add_(1.0)
        return buffer

    def product(self, sizes: tuple[int, ...], k: int, kind: str) -> Product:
        if kind == "bfloat16":
            return DenseProduct(self.side.random(sum(sizes), k, scale=k**-0.5).tensor)
        packing = packing_of(kind)
        made = [packed_weight(self.side, packing, n, k) for n in sizes]
        weights = [weight for weight, _ in made]
        stored = sum(traffic.packed(packing, n, k) for n in sizes)
        return PackedProduct(self.side, DTYPE, weights, stored, kept=made)

    def _layer(self) -> Layer:
        model, kind = self.model, self.kind
        return Layer(
            norm=self._around_one(model.hidden),
            qkv=self.product(model.qkv, model.hidden, kind),
            biases=self.side.random(sum(model.qkv), scale=0.1),
            o=self.product((model.hidden,), model.q_width, kind),
            mlp_norm=self._around_one(model.hidden),
            gate_up=self.product((model.inner, model.inner), model.hidden, kind),
            down=self.product((model.hidden,), model.inner, kind),
        )


@dataclass
class Looped:
    """A step that reads the token and the place of the one before, and leaves its own."""

    step: Step
    maker: Maker
    starts: Any
    context: int

    def run(self) -> None:
        maker, parts = self.maker, self.step.parts
        torch.index_select(maker.table.tensor, 0, self.step.tokens.tensor, out=self.step.x.tensor)
        torch.index_select(maker.cos, 0, self.starts.tensor, out=parts.cos.tensor)
        torch.index_select(maker.sin, 0, self.starts.tensor, out=parts.sin.tensor)
        self.step.run()
        self.starts.tensor.add_(1)

    def reset(self) -> None:
        self.starts.tensor.fill_(self.context - 1)
        self.step.tokens.tensor.zero_()


def looped(maker: Maker, rows: int, context: int, storage: str = DTYPE) -> Looped:
    side, model = maker.side, maker.model
    capacity = context + SPARE
    shape = (rows, capacity, model.kv_heads, model.dim)
    layers = []
    for layer in maker.layers:
        k, v = side.random(*shape), side.random(*shape)
        caches = [Cache(TorchBuffer(k.tensor[i]), TorchBuffer(v.tensor[i]), None, None) for i in range(rows)]
        layers.append(dataclasses.replace(layer, caches=caches))
    starts = TorchBuffer(torch.full((rows,), context - 1, dtype=torch.int32, device=side.where))
    cos, sin = (side.empty((rows, model.dim // 2), "float32") for _ in range(2))
    parts = Parts(layers, maker.norm, maker.head, starts, cos, sin, storage, capacity)
    step = decode_step(side, DTYPE, model, parts, side.empty((rows, model.hidden), DTYPE), rows)
    made = Looped(step, maker, starts, context)
    made.reset()
    return made


def parts_of(clock: Clock, made: Looped) -> dict[str, float]:
    """Microseconds of all launches of a name together, timed apart from the rest."""
    by_name: dict[str, list[Run]] = {}
    for name, launch in made.step.launches:
        by_name.setdefault(name, []).append(launch)
    found: dict[str, float] = {}
    for name, runs in by_name.items():
        timing = clock.measure({name: runs})[name]
        found[name] = timing.median * len(runs) if isinstance(timing, Timing) else float("nan")
    return found


def measured(clock: Clock, side: Side, model: Model, batches: tuple[int, ...], context: int) -> list[dict[str, Any]]:
    """All kinds of weights, and transformers, in turns. Records of figures as they are stored."""
    makers = {kind: Maker(side, model, kind) for kind in KINDS}
    records = []
    for rows in batches:
        made = {kind: looped(maker, rows, context) for kind, maker in makers.items()}
        try:
            theirs: Run | str = peer.decode_step(model, rows, context, SPARE, side.where)
        except Exception as error:  # another version of it, or none; ours are timed all the same
            theirs = f"{type(error).__name__}: {error}".splitlines()[0]
        sides: dict[str, list[Run]] = {kind: [each.run] for kind, each in made.items()}
        if not isinstance(theirs, str):
            sides["transformers"] = [theirs]
        timings: dict[str, Timing | Failure] = clock.measure(sides, repeats=False)
        if isinstance(theirs, str):
            timings["transformers"] = Failure(theirs)
        for name, timing in timings.items():
            record = {"model": model.name, "side": name, "batch": rows, "context": context}
            if name in made:
                made[name].reset()
                step = made[name].step
                cached = model.layers * traffic.cached(model, rows * context, DTYPE)
                record |= {"weight_bytes": step.weight_bytes, "cache_bytes": cached}
                record |= {"launches": len(step.launches) + 4}
                record["parts"] = parts_of(clock, made[name]) if rows == batches[0] else {}
            records.append(record | _figures(timing))
    return records


def _figures(timing: Timing | Failure) -> dict[str, Any]:
    return dataclasses.asdict(timing)
