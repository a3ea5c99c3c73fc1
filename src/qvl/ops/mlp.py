"""The two linear layers of a block and the gate between them, with packed weights, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import paddle

from qvl.ops import native
from qvl.ops.activation import quick_gelu, swiglu
from qvl.ops.linear import PackedLinear, linear

Gate = Literal["swiglu", "quick_gelu"]


def mlp(
    x: paddle.Tensor,
    inner: Sequence[PackedLinear],
    down: PackedLinear,
    gate: Gate,
    residual: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """down(silu(gate x) * up x) with two inner weights, down(quick_gelu(fc1 x)) with one, plus the residual.

    x: as `linear` takes it, [..., k]; residual: shaped as the result, [..., outputs of down]. Each weight adds its
    bias. No gradient. The numbers are those of `linear`, the gate and `linear` one after the other, to rounding. Raises
    ValueError for sizes that disagree.
    """
    module = native.library()
    if module is not None and down.moved is None:
        return module.mlp(x, [weight.native(module) for weight in inner], down.native(module), gate, residual)
    wanted = 2 if gate == "swiglu" else 1
    if len(inner) != wanted:
        raise ValueError(f"mlp: inner must be {wanted} weights for {gate}, not {len(inner)}")
    hidden = linear(x, inner)
    return linear(swiglu(hidden) if gate == "swiglu" else quick_gelu(hidden), down, residual)
