"""The decode step that is timed gives the numbers of a plain decoder: all kernels in order, over two layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels import packed
from tests.gpu.kernels.bench.sizes import TINY_MODEL as MODEL
from tests.gpu.kernels.bench.step import Layer, PackedProduct, Parts, Product, Step, decode_step
from tests.gpu.kernels.caches import Cache, filled_cache
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import assert_close, rounded, rounding
from tests.gpu.kernels.packed import packing

Array = npt.NDArray[Any]
DTYPE = "bfloat16"
STARTS = (0, 7, 130)  # tokens in the caches: an empty one, a short one, one of several parts
KINDS = {"int8": packing.Packing("int8"), "int4": packing.Packing("int4", 64, symmetric=False)}


@dataclass
class Matrices:
    """A layer as numbers: the same names as in bench.step.Layer."""

    norm: Array
    qkv: Array
    biases: Array
    o: Array
    mlp_norm: Array
    gate_up: Array
    down: Array
    caches: list[tuple[Array, Array]] = field(default_factory=list)


@dataclass
class HostProduct:
    """A product by NumPy that does not add, as cuBLAS's: what the norm behind it has to do then."""

    matrix: Array
    bytes: int
    adds: bool = False

    def bind(self, rows: int, x: Any, out: Any, residual: Any | None = None) -> Callable[[], None]:
        assert x.array.shape[0] == rows and residual is None

        def run() -> None:
            out.array[...] = packed.packing.to_bfloat16(x.numpy() @ self.matrix.T)

        return run


class Maker:
    """Weights on the device, and the same as numbers."""

    def __init__(self, device: Device, kind: str) -> None:
        self.device, self.kind, self.rng, self.bytes = device, kind, np.random.default_rng(11), 0

    def vector(self, size: int, around: float) -> tuple[Any, Array]:
        numbers = rounded(around + 0.3 * self.rng.normal(size=size), DTYPE)
        self.bytes += 2 * size
        return self.device.floats(numbers, DTYPE), numbers

    def product(self, sizes: tuple[int, ...], k: int, kind: str = "") -> tuple[Product, Array]:
        kind = kind or self.kind
        if kind == "dense":
            numbers = rounded(self.rng.normal(size=(sum(sizes), k)) / np.sqrt(k), DTYPE)
            self.bytes += 2 * numbers.size
            return HostProduct(numbers, 2 * numbers.size), numbers.astype(np.float64)
        made = [packed.put(self.device, packed.matrix(self.rng, KINDS[kind], n, k)) for n in sizes]
        stored = sum(weight.matrix.nbytes for weight in made)
        self.bytes += stored
        product = PackedProduct(self.device, DTYPE, [weight.struct for weight in made], stored, made)
        return product, np.concatenate([weight.numbers() for weight in made])

    def layer(self) -> tuple[Layer, Matrices]:
        inner, hidden = MODEL.inner, MODEL.hidden
        pairs = {
            "norm": self.vector(hidden, 1.0),
            "qkv": self.product(MODEL.qkv, hidden),
            "biases": self.vector(sum(MODEL.qkv), 0.0),
            "o": self.product((hidden,), MODEL.q_width),
            "mlp_norm": self.vector(hidden, 1.0),
            "gate_up": self.product((inner, inner), hidden),
            # Beside products that leave adding to the next norm one that does not.
            "down": self.product((hidden,), inner, "int8" if self.kind == "dense" else ""),
        }
        layer = Layer(**{name: pair[0] for name, pair in pairs.items()})
        matrices = Matrices(**{name: pair[1] for name, pair in pairs.items()})
        for start in STARTS:
            shape = (start, MODEL.kv_heads, MODEL.dim)
            k, v = (rounded(self.rng.normal(size=shape), DTYPE) for _ in range(2))
            layer.caches.append(filled_cache(self.device, DTYPE, k, v, spare=2))
            matrices.caches.append((k, v))
        return layer, matrices


@dataclass
class Case:
    step: Step
    layers: list[Matrices]
    caches: list[list[Cache]]
    norm: Array
    head: Array
    x: Array
    cos: Array
    sin: Array
    weight_bytes: int


def _case(device: Device, kind: str) -> Case:
    maker = Maker(device, kind)
    pairs = [maker.layer() for _ in range(MODEL.layers)]
    norm, head = maker.vector(MODEL.hidden, 1.0), maker.product((MODEL.vocab,), MODEL.hidden, "int8")
    angles = np.array(STARTS)[:, None] * 10000.0 ** -np.linspace(0, 1, MODEL.dim // 2, endpoint=False)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = rounded(maker.rng.normal(size=(len(STARTS), MODEL.hidden)), DTYPE)
    starts = device.put(np.array(STARTS, dtype=np.int32))
    tables = (device.put(cos), device.put(sin))
    parts = Parts([pair[0] for pair in pairs], norm[0], head[0], starts, *tables, DTYPE, max(STARTS) + 1)
    step = decode_step(device, DTYPE, MODEL, parts, device.floats(x, DTYPE), len(STARTS))
    caches = [pair[0].caches for pair in pairs]
    return Case(step, [pair[1] for pair in pairs], caches, norm[1], head[1], x, cos, sin, maker.bytes)


class Plain:
    """A decoder in NumPy: `r` is done to every result, `wide` is what is computed in."""

    def __init__(self, case: Case, r: Callable[[Array], Array], wide: type) -> None:
        self.case, self.r, self.wide = case, r, wide
        self.new: list[tuple[Array, Array]] = []  # keys and values of each layer

    def norm(self, x: Array, weight: Array) -> Array:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return self.r(self.r(x * scale) * weight.astype(self.wide))

    def product(self, x: Array, matrix: Array) -> Array:
        return self.r(x @ self.r(matrix).astype(self.wide).T)

    def turned(self, x: Array) -> Array:
        first, second = np.split(x, 2, axis=-1)
        c, s = self.case.cos[:, None].astype(self.wide), self.case.sin[:, None].astype(self.wide)
        r = self.r
        return np.concatenate([r(r(first * c) - r(second * s)), r(r(second * c) + r(first * s))], axis=-1)

    def attended(self, q: Array, k: Array, v: Array, layer: Matrices) -> Array:
        group, rows = MODEL.heads // MODEL.kv_heads, []
        for i, (keys, values) in enumerate(layer.caches):
            keys = np.repeat(np.concatenate([keys, k[i : i + 1]]), group, axis=1).astype(self.wide)
            values = np.repeat(np.concatenate([values, v[i : i + 1]]), group, axis=1).astype(self.wide)
            scores = self.r(self.r(np.einsum("hd,thd->ht", q[i], keys)) * self.wide(MODEL.dim**-0.5))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights = self.r(weights / weights.sum(axis=-1, keepdims=True))
            rows.append(self.r(np.einsum("ht,thd->hd", weights, values)))
        return np.stack(rows).reshape(len(rows), -1)

    def layer(self, x: Array, layer: Matrices) -> Array:
        r, rows = self.r, len(x)
        qkv = r(self.product(self.norm(x, layer.norm), layer.qkv) + layer.biases.astype(self.wide))
        at = [MODEL.q_width, MODEL.q_width + MODEL.kv_width]
        q, k, v = (part.reshape(rows, -1, MODEL.dim) for part in np.split(qkv, at, axis=1))
        q, k = self.turned(q), self.turned(k)
        self.new.append((k, v))
        x = r(x + self.product(self.attended(q, k, v, layer), layer.o))
        gate, up = np.split(self.product(self.norm(x, layer.mlp_norm), layer.gate_up), 2, axis=1)
        return r(x + self.product(r(r(gate / (1 + np.exp(-gate))) * up), layer.down))

    def logits(self) -> Array:
        x = self.case.x.astype(self.wide)
        for layer in self.case.layers:
            x = self.layer(x, layer)
        return self.product(self.norm(x, self.case.norm), self.case.head)


@pytest.mark.parametrize("kind", ["int8", "int4", "dense"])
def test_a_decode_step_is_a_plain_decoder(device: Device, kind: str) -> None:
    if kind == "dense" and not hasattr(device.empty((1,), "int32"), "array"):
        pytest.skip("NumPy's products take the emulator's memory")
    case = _case(device, kind)
    case.step.run()
    device.wait()
    truth, naive = Plain(case, lambda x: x, np.float64), Plain(case, rounding(DTYPE), np.float32)
    logits = case.step.logits.numpy()
    assert_close(logits, truth.logits(), naive.logits(), DTYPE, by_row=False)
    assert case.step.tokens.numpy().tolist() == logits.argmax(axis=1).tolist()
    for caches, true, low in zip(case.caches, truth.new, naive.new, strict=True):
        for i, start in enumerate(STARTS):
            for name, of_true, of_naive in zip(("k", "v"), true, low, strict=True):
                stored = getattr(caches[i], name).numpy()
                assert_close(stored[start], of_true[i], of_naive[i], DTYPE, by_row=False)
                assert np.isnan(stored[start + 1 :]).all()
    assert case.step.weight_bytes == case.weight_bytes
    assert [name for name, _ in case.step.launches] == [
        *(
            ["rms_norm", "qkv", "rotary_store", "attention", "o", "rms_norm", "gate_up", "swiglu", "down"]
            * MODEL.layers
        ),
        *("rms_norm", "head", "sample"),
    ]
