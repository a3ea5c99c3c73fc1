"""Which body an op takes: one of the native ones, or the one composed from Paddle ops.

Native bodies are for float32 on a CPU, and for bfloat16, float16 and float32 on a GPU. Where a gradient is recorded an
op takes the one of its native bodies that autograd knows, if it has one, and else the composed one. `QVL_OPS` decides
whether there are native ones at all, see `native` and `cuda`.
"""

from __future__ import annotations

from typing import Any

import paddle

from qvl.ops import cuda, native
from qvl.ops.cuda_body import Body

_ON_GPU = (paddle.bfloat16, paddle.float16, paddle.float32)


def module_for(*tensors: paddle.Tensor) -> Any:
    """The native ops of a CPU where they can work on these tensors and no gradient is recorded, else None.

    Raises as `native.library` does.
    """
    return None if _records(tensors) else _on_cpu(tensors)


def gpu_for(*tensors: paddle.Tensor) -> Body | None:
    """The native ops of a GPU where all these tensors are on one, of one type, and no gradient is recorded, else None.

    Raises as `cuda.library` does.
    """
    if not cuda.possible() or _records(tensors):
        return None
    return _on_gpu(tensors)


def body_for(*tensors: paddle.Tensor) -> Any:
    """Norms and gates of whichever device these tensors are on, as `module_for` and `gpu_for`."""
    return None if _records(tensors) else _anywhere(tensors)


def learner_for(*tensors: paddle.Tensor) -> Any:
    """The same where a gradient is recorded for one of these tensors."""
    return _anywhere(tensors) if _records(tensors) else None


def runs_natively(*tensors: paddle.Tensor) -> bool:
    """Whether ops on these tensors take their native bodies for inference."""
    return body_for(*tensors) is not None


def works_natively(*tensors: paddle.Tensor) -> bool:
    """Whether native bodies can work on these tensors, for inference or in training."""
    return _anywhere(tensors) is not None


def learns_natively(*tensors: paddle.Tensor) -> bool:
    """Whether a gradient is recorded for one of these tensors and native bodies of a CPU can work on all of them."""
    return _records(tensors) and _on_cpu(tensors) is not None


def dense(tensor: paddle.Tensor) -> paddle.Tensor:
    """The tensor itself, or a copy of one whose elements are not side by side."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _records(tensors: tuple[paddle.Tensor, ...]) -> bool:
    return paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in tensors)


def _anywhere(tensors: tuple[paddle.Tensor, ...]) -> Any:
    if cuda.possible() and (body := _on_gpu(tensors)) is not None:
        return body
    return _on_cpu(tensors)


def _on_cpu(tensors: tuple[paddle.Tensor, ...]) -> Any:
    module = native.library()
    if module is None or not paddle.in_dynamic_mode() or cuda.emulated():
        return None
    for tensor in tensors:
        if tensor.dtype != paddle.float32 or not tensor.place.is_cpu_place():
            return None
    return module


def _on_gpu(tensors: tuple[paddle.Tensor, ...]) -> Body | None:
    dtype, stands_for_it = tensors[0].dtype, cuda.emulated()
    if dtype not in _ON_GPU or not paddle.in_dynamic_mode():
        return None
    for tensor in tensors:
        place = tensor.place
        if tensor.dtype != dtype or not (place.is_cpu_place() if stands_for_it else place.is_gpu_place()):
            return None
    return cuda.library()
