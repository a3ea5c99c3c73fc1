"""The two gates of Qwen2-VL: SwiGLU in the language model, quick GELU in the vision tower."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F


def swiglu(gate: paddle.Tensor, up: paddle.Tensor) -> paddle.Tensor:
    """silu(gate) * up. Shapes equal, dtype kept."""
    return F.swiglu(gate, up)


def quick_gelu(x: paddle.Tensor) -> paddle.Tensor:
    """x * sigmoid(1.702 x), the approximation CLIP and this vision tower were trained with. Dtype kept."""
    return x * F.sigmoid(1.702 * x)
