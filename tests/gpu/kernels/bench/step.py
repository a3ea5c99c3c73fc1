"""One token for each of some sequences through a language model: its launches in order, set up once.

Where weights and memory come from is the caller's affair (`Parts`), so that the same step runs in the emulator, where
its numbers are checked, and on a card, where a graph of it is timed. Products of weights in 16 bits are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tests.gpu.kernels.bench import calls
from tests.gpu.kernels.bench.calls import Heads, Memory, Sequences
from tests.gpu.kernels.bench.sizes import Model
from tests.gpu.kernels.caches import Cache
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.structs_linear import LinearWeight

Run = Callable[[], None]


class Product(Protocol):
    """Weights of one or more linear layers that share an input. adds: it can put its result on a residual itself."""

    adds: bool
    bytes: int

    def bind(self, rows: int, x: Any, out: Any, residual: Any | None = None) -> Run: ...


@dataclass
class PackedProduct:
    """qvl_cuda_linear."""

    device: Device
    dtype: str
    weights: Sequence[LinearWeight]
    bytes: int
    kept: Any = None
    adds: bool = True

    def bind(self, rows: int, x: Memory, out: Memory, residual: Memory | None = None) -> Run:
        return calls.linear(self.device, self.dtype, rows, self.weights, x, out, residual)


@dataclass
class Layer:
    norm: Any  # before attention, [hidden]
    qkv: Product
    biases: Any  # of q, k and v, side by side
    o: Product
    mlp_norm: Any
    gate_up: Product
    down: Product
    caches: list[Cache] = field(default_factory=list)  # of each sequence


@dataclass
class Parts:
    """What a step is made of. starts: int32, tokens in each cache; cos and sin: of each sequence's new token."""

    layers: list[Layer]
    norm: Any
    head: Product
    starts: Any
    cos: Any
    sin: Any
    storage: str
    most_keys: int


@dataclass
class Step:
    """x: the token vectors, which the step changes. tokens: int64, one a row. launches: each with a name for tables."""

    x: Any
    logits: Any
    tokens: Any
    launches: list[tuple[str, Run]]
    weight_bytes: int
    parts: Parts  # launches know no more than where these lie

    def run(self) -> None:
        for _, launch in self.launches:
            launch()


def decode_step(device: Device, dtype: str, model: Model, parts: Parts, x: Any, rows: int) -> Step:
    """x: [rows, hidden]."""
    heads = Heads(model.heads, model.kv_heads, model.dim)
    wide = {"h": model.hidden, "qkv": heads.width, "q": model.q_width, "attended": model.q_width}
    wide |= {"gate_up": 2 * model.inner, "inner": model.inner, "delta": model.hidden, "logits": model.vocab}
    memory = {name: device.empty((rows, width), dtype) for name, width in wide.items()} | {"x": x}
    tokens = device.empty((rows,), "int64")
    rules = device.put(np.frombuffer(calls.rules(rows), np.uint8))
    builder = _Builder(device, dtype, model, rows, memory)
    for layer in parts.layers:
        builder.attention(layer, heads, parts)
        builder.mlp(layer)
    builder.norm(parts.norm)
    builder.add("head", parts.head.bind(rows, memory["h"], memory["logits"]))
    size = (rows, model.vocab)
    builder.add("sample", calls.sample(device, dtype, size, memory["logits"], rules, tokens))
    products = [product for layer in parts.layers for product in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    small = len(parts.layers) * (2 * model.hidden + heads.width) + model.hidden
    weight_bytes = sum(product.bytes for product in [*products, parts.head]) + small * calls.BYTES[dtype]
    return Step(x, memory["logits"], tokens, builder.launches, weight_bytes, parts)


class _Builder:
    """The launches so far, and what has still to be added to the residual stream: the next norm does that."""

    def __init__(self, device: Device, dtype: str, model: Model, rows: int, memory: dict[str, Any]) -> None:
        self.device, self.dtype, self.model, self.rows, self.memory = device, dtype, model, rows, memory
        self.launches: list[tuple[str, Run]] = []
        self.pending: Any | None = None

    def add(self, name: str, run: Run) -> None:
        self.launches.append((name, run))

    def norm(self, weight: Any) -> None:
        size = (self.rows, self.model.hidden)
        x, out = self.memory["x"], self.memory["h"]
        self.add("rms_norm", calls.rms_norm(self.device, self.dtype, size, x, weight, out, self.pending))
        self.pending = None

    def onto_residual(self, name: str, product: Product, source: Any) -> None:
        if product.adds:
            self.add(name, product.bind(self.rows, source, self.memory["x"], self.memory["x"]))
        else:
            self.add(name, product.bind(self.rows, source, self.memory["delta"]))
            self.pending = self.memory["delta"]

    def attention(self, layer: Layer, heads: Heads, parts: Parts) -> None:
        memory, tokens = self.memory, [1] * self.rows
        sequences = Sequences(layer.caches, tokens, parts.starts, parts.storage, parts.most_keys)
        self.norm(layer.norm)
        self.add("qkv", layer.qkv.bind(self.rows, memory["h"], memory["qkv"]))
        tables = (parts.cos, parts.sin)
        given = (self.device, self.dtype, heads, memory["qkv"], layer.biases, tables, memory["q"], sequences)
        self.add("rotary_store", calls.rotary_store(*given))
        q, attended = memory["q"], memory["attended"]
        self.add("attention", calls.attention(self.device, self.dtype, heads, q, attended, sequences))
        self.onto_residual("o", layer.o, memory["attended"])

    def mlp(self, layer: Layer) -> None:
        memory = self.memory
        self.norm(layer.mlp_norm)
        self.add("gate_up", layer.gate_up.bind(self.rows, memory["h"], memory["gate_up"]))
        size = (self.rows, self.model.inner)
        self.add("swiglu", calls.swiglu(self.device, self.dtype, size, memory["gate_up"], memory["inner"]))
        self.onto_residual("down", layer.down, memory["inner"])
