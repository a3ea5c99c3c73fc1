"""Ops that learn: native in both directions, and known to Paddle's autograd.

What holds for each of them. What a backward pass needs goes through `save_for_backward`, so that recomputation can
leave it out, and is contiguous, since recomputation hands it back as if it were. An output is saved detached: it would
keep its own graph alive. Which gradients are wanted is noted in the forward pass, from the inputs themselves, since
what comes back after a recomputation may say otherwise. There are no gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from qvl.ops import native
from qvl.ops.bodies import dense

Wanted = tuple[bool, ...]


def wanted(*inputs: paddle.Tensor) -> Wanted:
    """Whose gradients a backward pass has to give."""
    return tuple(not tensor.stop_gradient for tensor in inputs)


class RmsNorm(PyLayer):
    """`rms_norm`: the module that has it, x, weight, epsilon."""

    @staticmethod
    def forward(ctx: Any, module: Any, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        ctx.module, ctx.epsilon, ctx.wanted = module, epsilon, wanted(x, weight)
        x = dense(x)
        ctx.save_for_backward(x, weight)
        return ctx.module.rms_norm(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        return ctx.module.rms_norm_grad(x, weight, ctx.epsilon, dense(grad), None, (*ctx.wanted, False))[:2]


class AddRmsNorm(PyLayer):
    """`add_rms_norm`: the module that has it, x, delta, weight, epsilon."""

    @staticmethod
    def forward(
        ctx: Any, module: Any, x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, epsilon: float
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        ctx.module, ctx.epsilon, ctx.wanted = module, epsilon, wanted(x, delta, weight)
        total, normal = ctx.module.add_rms_norm(dense(x), dense(delta), weight, epsilon)
        ctx.save_for_backward(total.detach(), weight)
        return total, normal

    @staticmethod
    def backward(ctx: Any, grad_total: paddle.Tensor, grad: paddle.Tensor) -> Any:
        total, weight = ctx.saved_tensor()
        x, delta, learns = ctx.wanted
        both, to_weight, _ = ctx.module.rms_norm_grad(
            total, weight, ctx.epsilon, dense(grad), dense(grad_total), (x or delta, learns, False)
        )
        return both if x else None, both if delta else None, to_weight


class LayerNorm(PyLayer):
    """`layer_norm`: the module that has it, x, weight, bias, epsilon."""

    @staticmethod
    def forward(
        ctx: Any, module: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
    ) -> paddle.Tensor:
        ctx.module, ctx.epsilon, ctx.wanted = module, epsilon, wanted(x, weight, bias)
        x = dense(x)
        ctx.save_for_backward(x, weight)
        return ctx.module.layer_norm(x, weight, bias, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        return ctx.module.layer_norm_grad(x, weight, ctx.epsilon, dense(grad), None, ctx.wanted)


class AddLayerNorm(PyLayer):
    """`add_layer_norm`: the module that has it, x, delta, weight, bias, epsilon."""

    @staticmethod
    def forward(
        ctx: Any,
        module: Any,
        x: paddle.Tensor,
        delta: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor,
        epsilon: float,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        ctx.module, ctx.epsilon, ctx.wanted = module, epsilon, wanted(x, delta, weight, bias)
        total, normal = ctx.module.add_layer_norm(dense(x), dense(delta), weight, bias, epsilon)
        ctx.save_for_backward(total.detach(), weight)
        return total, normal

    @staticmethod
    def backward(ctx: Any, grad_total: paddle.Tensor, grad: paddle.Tensor) -> Any:
        total, weight = ctx.saved_tensor()
        x, delta, *learn = ctx.wanted
        both, to_weight, to_bias = ctx.module.layer_norm_grad(
            total, weight, ctx.epsilon, dense(grad), dense(grad_total), (x or delta, *learn)
        )
        return both if x else None, both if delta else None, to_weight, to_bias


class Swiglu(PyLayer):
    """`swiglu`: the module that has it, gate, up; or both in one."""

    @staticmethod
    def forward(ctx: Any, module: Any, gate: paddle.Tensor, up: paddle.Tensor | None) -> paddle.Tensor:
        ctx.module = module
        gate = dense(gate)
        if up is None:
            ctx.wanted = wanted(gate)
            ctx.save_for_backward(gate)
        else:
            ctx.wanted = wanted(gate, up)
            up = dense(up)
            ctx.save_for_backward(gate, up)
        return ctx.module.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        gate, *up = ctx.saved_tensor()
        made = ctx.module.swiglu_grad(gate, up[0] if up else None, dense(grad))
        given = tuple(one if asked else None for one, asked in zip(made, ctx.wanted, strict=False))
        return given if up else given[0]


class QuickGelu(PyLayer):
    """`quick_gelu`: the module that has it, x."""

    @staticmethod
    def forward(ctx: Any, module: Any, x: paddle.Tensor) -> paddle.Tensor:
        ctx.module = module
        x = dense(x)
        ctx.save_for_backward(x)
        return ctx.module.quick_gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        (x,) = ctx.saved_tensor()
        return ctx.module.quick_gelu_grad(x, dense(grad))


class Rotation(PyLayer):
    """The heads of x [N, heads, D] turned: the body of a GPU that does it, x, cos and sin float32 [N, D/2]."""

    @staticmethod
    def forward(ctx: Any, module: Any, x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
        ctx.module = module
        ctx.save_for_backward(cos, sin)
        out = x.clone()
        module.rotate(out, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        cos, sin = ctx.saved_tensor()
        to_x = grad.clone()
        ctx.module.rotate(to_x, cos, sin, back=True)
        return to_x, None, None


class BiasedLinear(PyLayer):
    """x W + bias for x [N, k], W [k, n]: Paddle's products, and native sums for the bias."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        ctx.module, ctx.wanted = native.library(), wanted(x, weight, bias)
        x = dense(x)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        to_x, to_weight, to_bias = ctx.wanted
        return (
            paddle.matmul(grad, weight, transpose_y=True) if to_x else None,
            paddle.matmul(x, grad, transpose_x=True) if to_weight else None,
            ctx.module.column_sums(dense(grad)) if to_bias else None,
        )


class RoundedLinear(PyLayer):
    """x W + bias for x [N, k], W [k, n] and a bias or None, all products of operands rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        ctx.module = native.library()
        ctx.wanted = wanted(x, weight) if bias is None else wanted(x, weight, bias)
        x, weight = dense(x), dense(weight)
        ctx.save_for_backward(x, weight)
        return ctx.module.product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        x, weight = ctx.saved_tensor()
        grad = dense(grad)
        to_x, to_weight, *to_bias = ctx.wanted
        made = (
            ctx.module.product(grad, weight, b_turned=True) if to_x else None,
            ctx.module.product(x, grad, a_turned=True) if to_weight else None,
        )
        return (*made, ctx.module.column_sums(grad) if to_bias[0] else None) if to_bias else made


@dataclass(frozen=True)
class AttentionPlan:
    """What attention is told beside tensors. spans: (queries, keys) of each sequence."""

    heads: int
    kv_heads: int
    spans: Sequence[tuple[int, int]]
    causal: bool


class Attention(PyLayer):
    """Attention over sequences, with q and k turned first where there are tables.

    plan; q, k, v: [N, heads * D] and twice [M, kv_heads * D], or [N, heads, D] and so on; or all three side by side in
    q [N, ...], and k and v None. cos, sin: float32 [M, D/2], or None. The result is shaped as q, or [N, heads * D].
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: AttentionPlan,
        q: paddle.Tensor,
        k: paddle.Tensor | None,
        v: paddle.Tensor | None,
        cos: paddle.Tensor | None,
        sin: paddle.Tensor | None,
    ) -> paddle.Tensor:
        given = [None if x is None else dense(x) for x in (q, k, v, cos, sin)]
        ctx.module, ctx.plan = native.library(), plan
        # The tables are constants.
        ctx.wanted = [not x.stop_gradient for x in given[:3] if x is not None]
        ctx.places = [i for i, x in enumerate(given) if x is not None]
        out, softmax = ctx.module.attention_learning(*_operands(given, plan))
        ctx.save_for_backward(out.detach(), softmax, *(x for x in given if x is not None))
        return out

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        out, softmax, *kept = ctx.saved_tensor()
        given: list[paddle.Tensor | None] = [None] * 5
        for place, x in zip(ctx.places, kept, strict=True):
            given[place] = x
        made = ctx.module.attention_grad(*_operands(given, ctx.plan), out, softmax, dense(grad))
        gradients = [one if asked else None for one, asked in zip(made, ctx.wanted, strict=False)]
        gradients += [None] * (len(kept) - len(gradients))
        return gradients[0] if len(gradients) == 1 else tuple(gradients)


def _operands(given: Sequence[paddle.Tensor | None], plan: AttentionPlan) -> tuple[Any, ...]:
    q, k, v, cos, sin = given
    return q, k, v, (cos, sin), plan.heads, plan.kv_heads, list(plan.spans), plan.causal
