"""Layers whose weights are quantised, and how they take the places of those that are not.

A projection holds the linears that share an input and runs them as one op. Each keeps its name and its own matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import paddle
from paddle import nn

from qvl.model.quantization import EMBEDDING, Quantization
from qvl.ops.activation import quick_gelu, swiglu
from qvl.ops.linear import PackedLinear, embedding, linear
from qvl.ops.mlp import Gate, mlp

if TYPE_CHECKING:
    from qvl.model.qwen2_vl import Qwen2VL


class Projection(nn.Layer):
    """Linears of one input, their outputs side by side. names: published ones; widths: outputs of each."""

    def __init__(self, names: Sequence[str], widths: Sequence[int], inputs: int) -> None:
        super().__init__()
        self.names, self.widths, self.inputs = tuple(names), tuple(widths), inputs
        self.dtype = paddle.float32  # of what comes out

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> paddle.Tensor:
        """x: [..., inputs]; residual: as the result, [..., sum of widths], to which it is added."""
        raise NotImplementedError


class PackedProjection(Projection):
    """With packed matrices. They are given before it is used, and lie on a GPU if that is where it is used."""

    weights: PackedLinear | list[PackedLinear]

    def give(self, weights: Mapping[str, PackedLinear]) -> None:
        """Take those of its names."""
        own = [weights[name] for name in self.names]
        self.weights = own[0] if len(own) == 1 else own

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> paddle.Tensor:
        return linear(x, self.weights, residual)


def gated_mlp(
    inner: nn.Layer, down: nn.Layer, gate: Gate, x: paddle.Tensor, residual: paddle.Tensor | None = None
) -> paddle.Tensor:
    """The second projection of what the gate makes of the first one's outputs, plus the residual.

    One op where both are packed and nothing is laid over them. inner: of gate and up, or the one layer before the gate.
    """
    if _is_bare(inner) and _is_bare(down):
        assert isinstance(inner, PackedProjection) and isinstance(down, PackedProjection)
        first = [inner.weights] if isinstance(inner.weights, PackedLinear) else inner.weights
        assert isinstance(down.weights, PackedLinear)
        return mlp(x, first, down.weights, gate, residual)
    hidden = inner(x)
    added = () if residual is None else (residual,)
    return down(swiglu(hidden) if gate == "swiglu" else quick_gelu(hidden), *added)


def _is_bare(layer: nn.Layer) -> bool:
    """Whether a layer multiplies and does nothing else. An adapter is a hook on the layer that it is for."""
    return type(layer) is PackedProjection and not layer._forward_post_hooks and not layer._forward_pre_hooks


class PackedEmbedding(nn.Layer):
    """Vectors of tokens in one packed matrix, which is the head as well where that is tied. dtype: of the vectors."""

    weight: PackedLinear

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        return embedding(ids, self.weight, self.dtype)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[K, width] -> [K, vocabulary]."""
        return linear(hidden, self.weight)


# Makes the layer for linears of those names, widths and that many inputs.
Make = Callable[[Sequence[str], Sequence[int], int], Projection]

# What shares an input: the layer's name in its parent, and the linears it stands for.
_TOGETHER = {
    "self_attn": ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    "mlp": ("gate_up_proj", ("gate_proj", "up_proj")),
}


def takes_residual(layer: nn.Layer) -> bool:
    """Whether a linear adds a residual itself."""
    return isinstance(layer, Projection)


def projections(model: nn.Layer) -> Iterator[Projection]:
    """Every quantised projection of a model."""
    return (layer for layer in model.sublayers() if isinstance(layer, Projection))


def replace_linears(
    model: Qwen2VL, quantization: Quantization, make: Make = PackedProjection, dtype: str = "float32"
) -> None:
    """Put quantised layers, still without weights, in the places of a model's linears and embedding.

    model: as `weights.empty_model` makes it, in that dtype.
    """
    for number, block in enumerate(model.model.layers):
        for parent, (joined, names) in _TOGETHER.items():
            holder = getattr(block, parent)
            linears = [getattr(holder, name) for name in names]
            for name in names:
                delattr(holder, name)
            full = [f"model.layers.{number}.{parent}.{name}" for name in names]
            setattr(holder, joined, _make(make, full, linears))
    layers = dict(model.named_sublayers(include_self=True))  # the model itself is ""
    for name, layer in layers.items():
        kept = "patch_embed" in name or quantization.scheme_of(f"{name}.weight") is None
        if isinstance(layer, nn.Linear) and not kept:
            above, _, last = name.rpartition(".")
            layers[above].add_sublayer(last, _make(make, [name], [layer]))
    if quantization.scheme_of(EMBEDDING) is not None:
        model.model.embed_tokens = PackedEmbedding(dtype)
    if quantization.vision is not None and dtype == "float32":
        # Where the CPU has a tile unit, the products on either side of attention are in bfloat16 too.
        for block in model.visual.blocks:
            block.attn.impl = "rounded"


def _make(make: Make, names: Sequence[str], linears: Sequence[nn.Linear]) -> Projection:
    return make(names, [int(layer.weight.shape[1]) for layer in linears], int(linears[0].weight.shape[0]))


def give_weights(model: Qwen2VL, weights: Mapping[str, PackedLinear]) -> None:
    """Hand every packed layer its matrices. weights: by the published name of each linear, "model.embed_tokens" too."""
    for layer in projections(model):
        assert isinstance(layer, PackedProjection)
        layer.give(weights)
    if isinstance(model.model.embed_tokens, PackedEmbedding):
        model.model.embed_tokens.weight = weights[EMBEDDING.removesuffix(".weight")]
