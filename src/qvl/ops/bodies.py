"""Which body an op takes: the native one, or the one composed from Paddle ops.

The native bodies are for float32 on a CPU. Where a gradient is recorded an op takes the one of its native bodies that
autograd knows, if it has one, and else the composed one. `QVL_OPS` decides whether there are native ones at all, see
`native`.
"""

from __future__ import annotations

from typing import Any

import paddle

from qvl.ops import native


def module_for(*tensors: paddle.Tensor) -> Any:
    """The library of native ops where it can work on these tensors and no gradient is recorded, else None.

    Raises as `native.library` does.
    """
    module = native.library()
    if module is None or not paddle.in_dynamic_mode():
        return None
    recording = paddle.is_grad_enabled()
    for tensor in tensors:
        if tensor.dtype != paddle.float32 or not tensor.place.is_cpu_place():
            return None
        if recording and not tensor.stop_gradient:
            return None
    return module


def runs_natively(*tensors: paddle.Tensor) -> bool:
    """Whether ops on these tensors take their native bodies for inference."""
    return module_for(*tensors) is not None


def works_natively(*tensors: paddle.Tensor) -> bool:
    """Whether native bodies can work on these tensors, for inference or in training."""
    if native.library() is None or not paddle.in_dynamic_mode():
        return False
    return all(tensor.dtype == paddle.float32 and tensor.place.is_cpu_place() for tensor in tensors)


def learns_natively(*tensors: paddle.Tensor) -> bool:
    """Whether a gradient is recorded for one of these tensors and native bodies can work on all of them."""
    if not paddle.is_grad_enabled() or all(tensor.stop_gradient for tensor in tensors):
        return False
    return works_natively(*tensors)


def dense(tensor: paddle.Tensor) -> paddle.Tensor:
    """The tensor itself, or a copy of one whose elements are not side by side."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()
