"""RMS normalisation."""

from __future__ import annotations

import paddle


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """x / sqrt(mean(x**2) + epsilon) * weight over the last axis.

    x: [..., H]; weight: [H]; result has x's dtype. The mean is taken in float32 whatever the dtype, and the product
    with the weight in x's dtype, as the reference model does.
    """
    wide = x.astype("float32")
    scale = paddle.rsqrt((wide * wide).mean(axis=-1, keepdim=True) + epsilon)
    return (wide * scale).astype(x.dtype) * weight
