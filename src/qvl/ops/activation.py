"""The two gates of Qwen2-VL: SwiGLU in the language model, quick GELU in the vision tower."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from qvl.ops import gradients
from qvl.ops.bodies import body_for, dense, learner_for


def swiglu(gate: paddle.Tensor, up: paddle.Tensor | None = None) -> paddle.Tensor:
    """silu(gate) * up. Shapes equal, dtype kept. Without `up`, gate is [..., 2I] with the gate in front of up."""
    given = (gate,) if up is None else (gate, up)
    module = body_for(*given)
    if module is not None:
        return module.swiglu(dense(gate), None if up is None else dense(up))
    if (learner := learner_for(*given)) is not None:
        return gradients.Swiglu.apply(learner, gate, up)
    return F.swiglu(gate, up)


def quick_gelu(x: paddle.Tensor) -> paddle.Tensor:
    """x * sigmoid(1.702 x), the approximation CLIP and this vision tower were trained with. Dtype kept."""
    module = body_for(x)
    if module is not None:
        return module.quick_gelu(dense(x))
    if (learner := learner_for(x)) is not None:
        return gradients.QuickGelu.apply(learner, x)
    return x * F.sigmoid(1.702 * x)
