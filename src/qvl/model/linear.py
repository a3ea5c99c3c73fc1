"""The linear layers of the model, which have products and gradients of their own on a CPU."""

from __future__ import annotations

import paddle
from paddle import nn

from qvl import ops


class BiasedLinear(nn.Linear):
    """An nn.Linear, so that LoRA and the checkpoint take it for one."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return ops.learning_linear(x, self.weight, self.bias)


class PlainLinear(nn.Linear):
    """The same without a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return ops.learning_linear(x, self.weight)


def is_bare(layer: nn.Layer) -> bool:
    """Whether a layer is a plain linear with nothing laid over it. An adapter is a hook on the layer that it is for."""
    return type(layer) is BiasedLinear and not layer._forward_post_hooks and not layer._forward_pre_hooks
