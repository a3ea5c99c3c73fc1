"""Linear layers: with packed weights (bf16, int8, int4), and with Paddle's own float32 ones.

Native bodies read packed weights where they lie. The composed one widens them to float32 a block at a time, at every
call: it is the reference, and what a machine without the native ops has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F

from qvl.ops import gradients, native, packing
from qvl.ops.bodies import dense, learns_natively
from qvl.ops.cuda_body import Body
from qvl.ops.cuda_linear import MovedWeight, moved_embedding, moved_linear
from qvl.ops.packing import Floats, PackedMatrix, Packing
from qvl.ops.products import module_for_product

# Outputs that the composed body widens at a time.
_BLOCK = 2048
# With more rows than this Paddle's own float32 product is the faster one.
_DENSE_ROWS = 4


def pack(source: npt.NDArray[Any], how: Packing) -> PackedMatrix:
    """Quantise and lay out a matrix [n, k] (outputs, inputs): float32, or bfloat16 as uint16, in any strides.

    A Paddle weight [in, out] is given as its `.numpy().T`, without a copy. Blocks of rows may be packed one by one,
    each a multiple of 16 but the last: their arrays laid end to end are those of the whole.
    """
    module = native.library()
    if module is None:
        return packing.pack(source, how)
    if source.dtype not in (np.float32, np.uint16):
        source = source.astype(np.float32)
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in how.shapes(*source.shape).items()}
    module.pack(how.kind, how.group, source, arrays["data"], arrays.get("scales"), arrays.get("zeros"))
    n, k = source.shape
    return PackedMatrix(how, n, k, **arrays)


def unpack(matrix: PackedMatrix) -> Floats:
    """The matrix as float32 [n, k]."""
    module = native.library()
    if module is None:
        return packing.unpack(matrix)
    out = np.empty((matrix.n, matrix.k), np.float32)
    module.unpack(_handle(module, matrix, None), out)
    return out


class PackedLinear:
    """A packed matrix and its bias, ready to be applied. Holds its arrays; there is nothing to train in it."""

    matrix: PackedMatrix  # not where it was moved to a GPU
    moved: MovedWeight | None = None

    def __init__(self, matrix: PackedMatrix, bias: Floats | None = None) -> None:
        """bias: float32 [n]."""
        if bias is not None and bias.shape != (matrix.n,):
            raise ValueError(f"linear: bias has shape {list(bias.shape)}, the weight {matrix.n} outputs")
        self.matrix = matrix
        self.bias = None if bias is None else np.ascontiguousarray(bias, dtype=np.float32)
        self._native: Any = None

    def move(self, body: Body) -> None:
        """To Paddle's current device, a GPU, for good. body: its ops."""
        self.moved = MovedWeight(body, self.matrix, self.bias)
        del self.matrix
        self.bias = None

    def native(self, module: Any) -> Any:
        """What the native ops take in its place."""
        if self._native is None:
            self._native = _handle(module, self.matrix, self.bias)
        return self._native


def linear(
    x: paddle.Tensor, weights: PackedLinear | Sequence[PackedLinear], residual: paddle.Tensor | None = None
) -> paddle.Tensor:
    """x W^T + bias + residual; with several weights, which share kind and inputs, their outputs side by side.

    x: float32 [..., k] on the CPU, or bfloat16 or float16 on the GPU that the weights were moved to; residual: shaped
    as the result, [..., n]. No gradient.
    int8 and int4 weights: the native body quantises x to int8 by row and group of inputs (or to bfloat16 on AMX), so
    it differs from the composed one, which keeps float32, by that rounding. Raises ValueError for sizes that disagree.
    """
    first = weights if isinstance(weights, PackedLinear) else weights[0]
    if first.moved is not None:
        return moved_linear(x, _moved([weights] if isinstance(weights, PackedLinear) else weights), residual)
    module = native.library()
    if module is not None:
        if isinstance(weights, PackedLinear):
            return module.linear(x, weights.native(module), residual)
        return module.linear(x, [weight.native(module) for weight in weights], residual)
    weights = [weights] if isinstance(weights, PackedLinear) else weights
    parts = [_composed(x, weight) for weight in weights]
    out = parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1)
    return out if residual is None else out + residual


def embedding(ids: paddle.Tensor, weight: PackedLinear, dtype: str = "float32") -> paddle.Tensor:
    """Rows of a packed matrix [n, k]: ids int64 of any shape, result [..., k]. Raises ValueError.

    dtype: of the result on a GPU, bfloat16 or float16; on a CPU it is float32.
    """
    if weight.moved is not None:
        return moved_embedding(ids, weight.moved, dtype)
    module = native.library()
    if module is not None:
        return module.embedding(ids, weight.native(module))
    wanted = ids.numpy()
    outside = wanted[(wanted < 0) | (wanted >= weight.matrix.n)]
    if outside.size:
        raise ValueError(f"embedding: ids has {outside[0]}, the weight has {weight.matrix.n} rows")
    rows = [packing.unpack(weight.matrix, int(i), int(i) + 1) for i in wanted.reshape(-1)]
    table = np.concatenate(rows) if rows else np.zeros((0, weight.matrix.k), np.float32)
    return paddle.to_tensor(table.reshape([*ids.shape, weight.matrix.k]))


def linear_dense(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    bias: paddle.Tensor | None = None,
    residual: paddle.Tensor | None = None,
    *,
    in_major: bool = True,
) -> paddle.Tensor:
    """x W + bias + residual with an unpacked W: [k, n], or [n, k] without `in_major` (a tied head). Dtype kept.

    The native body is for few rows in float32 on a CPU where no gradient is asked for; Paddle does the rest.
    """
    module = native.library()
    if module is not None and _few_rows(x, weight):
        return module.linear_dense(x, weight, bias, residual, in_major)
    out = F.linear(x, weight, bias) if in_major else paddle.matmul(x, weight, transpose_y=True)
    if not in_major and bias is not None:
        out = out + bias
    return out if residual is None else out + residual


def learning_linear(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None) -> paddle.Tensor:
    """x W + bias for x [N, k], W [k, n], bias [n]. Where a bias learns on a CPU its gradient is native.

    Within `rounding` the products are of bfloat16, where there is a body for them.
    """
    module = module_for_product(x, weight)
    if module is not None:
        given = (x, weight) if bias is None else (x, weight, bias)
        if paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in given):
            return gradients.RoundedLinear.apply(x, weight, bias)
        return module.product(dense(x), dense(weight), bias)
    if bias is not None and x.ndim == 2 and not bias.stop_gradient and learns_natively(x, weight, bias):
        return gradients.BiasedLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def _moved(weights: Sequence[PackedLinear]) -> list[MovedWeight]:
    moved = [weight.moved for weight in weights if weight.moved is not None]
    assert len(moved) == len(weights)
    return moved


def _few_rows(x: paddle.Tensor, weight: paddle.Tensor) -> bool:
    if x.size > _DENSE_ROWS * x.shape[-1] or x.size == 0 or not x.place.is_cpu_place():
        return False
    if x.dtype != paddle.float32 or weight.dtype != paddle.float32:
        return False
    return not (paddle.is_grad_enabled() and not (x.stop_gradient and weight.stop_gradient))


def _composed(x: paddle.Tensor, weight: PackedLinear) -> paddle.Tensor:
    matrix = weight.matrix
    if x.shape[-1] != matrix.k:
        raise ValueError(f"linear: x has shape {list(x.shape)}, its last size must be {matrix.k}")
    parts = []
    for first in range(0, matrix.n, _BLOCK):
        rows = paddle.to_tensor(packing.unpack(matrix, first, first + _BLOCK))
        parts.append(paddle.matmul(x, rows, transpose_y=True))
    out = parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1)
    return out if weight.bias is None else out + paddle.to_tensor(weight.bias)


def _handle(module: Any, matrix: PackedMatrix, bias: Floats | None) -> Any:
    how = matrix.packing
    return module.PackedWeight(how.kind, matrix.n, matrix.k, how.group, matrix.data, matrix.scales, matrix.zeros, bias)
