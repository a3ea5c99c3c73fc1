"""Normalisation of rows, alone and with the residual stream updated in the same pass."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from qvl.ops import gradients
from qvl.ops.bodies import body_for, dense, learner_for


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """x / sqrt(mean(x**2) + epsilon) * weight over the last axis.

    x: [..., H]; weight: [H]; result has x's dtype. The mean is taken in float32 whatever the dtype, and the product
    with the weight in x's dtype, as the reference model does.
    """
    module = body_for(x, weight)
    if module is not None:
        return module.rms_norm(dense(x), weight, epsilon)
    if (learner := learner_for(x, weight)) is not None:
        return gradients.RmsNorm.apply(learner, x, weight, epsilon)
    wide = x.astype("float32")
    scale = paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + epsilon)
    return (wide * scale).astype(x.dtype) * weight


def add_rms_norm(
    x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, epsilon: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(x + delta, rms_norm of that). x, delta: [..., H] of one dtype."""
    module = body_for(x, delta, weight)
    if module is not None:
        total, normal = module.add_rms_norm(dense(x), dense(delta), weight, epsilon)
        return total, normal
    if (learner := learner_for(x, delta, weight)) is not None:
        total, normal = gradients.AddRmsNorm.apply(learner, x, delta, weight, epsilon)
        return total, normal
    x = x + delta
    return x, rms_norm(x, weight, epsilon)


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis. x: [..., H]; weight, bias: [H]."""
    module = body_for(x, weight, bias)
    if module is not None:
        return module.layer_norm(dense(x), weight, bias, epsilon)
    if (learner := learner_for(x, weight, bias)) is not None:
        return gradients.LayerNorm.apply(learner, x, weight, bias, epsilon)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def add_layer_norm(
    x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(x + delta, layer_norm of that). x, delta: [..., H] of one dtype."""
    module = body_for(x, delta, weight, bias)
    if module is not None:
        total, normal = module.add_layer_norm(dense(x), dense(delta), weight, bias, epsilon)
        return total, normal
    if (learner := learner_for(x, delta, weight, bias)) is not None:
        total, normal = gradients.AddLayerNorm.apply(learner, x, delta, weight, bias, epsilon)
        return total, normal
    x = x + delta
    return x, layer_norm(x, weight, bias, epsilon)
