"""Linear layers whose packed weights lie in a GPU's memory: few rows read them there, many have them widened first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from qvl.ops.bodies import dense
from qvl.ops.cuda_body import Body
from qvl.ops.packing import Array, Floats, PackedMatrix

# Elements of a matrix that are widened at a time: 512 MB of bfloat16. Only heads are larger.
_AT_ONCE = 1 << 28


class MovedWeight:
    """A packed matrix and its bias on Paddle's current device. body: the ops of a GPU that it is for.

    Raises ValueError for bfloat16, which has no kernel of its own on a GPU.
    """

    def __init__(self, body: Body, matrix: PackedMatrix, bias: Floats | None = None) -> None:
        if matrix.packing.kind == "bf16":
            raise ValueError("linear: kind must be int8 or int4 on a GPU")
        self.body, self.n, self.k = body, matrix.n, matrix.k
        arrays = (matrix.data, matrix.scales, matrix.zeros, bias)
        data, scales, zeros, self.bias = (None if array is None else _uploaded(array) for array in arrays)
        packing = matrix.packing
        self.handle = body.weight(packing.kind, self.n, self.k, packing.group, data, scales, zeros, self.bias)


def moved_linear(
    x: paddle.Tensor, weights: Sequence[MovedWeight], residual: paddle.Tensor | None = None
) -> paddle.Tensor:
    """x W^T + bias + residual, see `linear.linear`. x: bfloat16 or float16."""
    body = weights[0].body
    if 0 < x.size <= body.most_rows * x.shape[-1]:
        return body.linear(dense(x), [weight.handle for weight in weights], _dense(residual))
    parts = [_product(x, weight) for weight in weights]
    out = parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1)
    return out if residual is None else out + residual


def moved_embedding(ids: paddle.Tensor, weight: MovedWeight, dtype: str) -> paddle.Tensor:
    """Rows of a matrix as bfloat16 or float16: ids int64 of any shape, all of them rows of it."""
    return weight.body.unpack(weight.handle, dtype, dense(ids))


def _product(x: paddle.Tensor, weight: MovedWeight) -> paddle.Tensor:
    """For many rows, by a dense product."""
    name = str(x.dtype).removeprefix("paddle.")
    height = max(1, _AT_ONCE // weight.k)
    if height >= weight.n:
        out = paddle.matmul(x, weight.body.unpack(weight.handle, name), transpose_y=True)
    else:
        blocks = [np.arange(first, min(first + height, weight.n)) for first in range(0, weight.n, height)]
        wide = (weight.body.unpack(weight.handle, name, paddle.to_tensor(rows)) for rows in blocks)
        out = paddle.concat([paddle.matmul(x, block, transpose_y=True) for block in wide], axis=-1)
    return out if weight.bias is None else out + weight.bias.astype(x.dtype)


def _dense(tensor: paddle.Tensor | None) -> paddle.Tensor | None:
    return None if tensor is None else dense(tensor)


def _uploaded(array: Array) -> paddle.Tensor:
    return paddle.to_tensor(np.ascontiguousarray(array))
