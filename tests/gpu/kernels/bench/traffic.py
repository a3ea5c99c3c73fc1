"""Bytes that an op has to read and write at least: every operand once. Activations are in 16 bits."""

from __future__ import annotations

import math
from typing import Any

from tests.gpu.kernels.bench.calls import BYTES
from tests.gpu.kernels.bench.sizes import Model
from tests.gpu.kernels.packed import packing

HALF = 2


def rms_norm(rows: int, width: int) -> int:
    """x and what is added to it, their sum, the result, and the weight."""
    return (4 * rows + 1) * width * HALF


def norm_grad(rows: int, width: int) -> int:
    """x, the gradient of the result, that of x; the weight and its gradient, which is float32."""
    return 3 * rows * width * HALF + width * (HALF + 4)


def layer_norm(rows: int, width: int) -> int:
    """With the number of the row that each is made from."""
    return (2 * rows + 2) * width * HALF + rows * 8


def swiglu(rows: int, width: int) -> int:
    return 3 * rows * width * HALF


def swiglu_grad(rows: int, width: int) -> int:
    return 5 * rows * width * HALF


def quick_gelu(rows: int, width: int) -> int:
    return 2 * rows * width * HALF


def cached(model: Model, tokens: int, storage: str) -> int:
    """Keys and values of one layer."""
    scales = 2 * 4 * model.kv_heads if storage == "int8" else 0
    return tokens * (2 * model.kv_width * BYTES[storage] + scales)


def rotary_store(model: Model, rows: int, storage: str) -> int:
    """q, k and v and their biases, cos and sin, q, and what is stored."""
    tables = rows * model.dim * 4
    return (rows + 1) * sum(model.qkv) * HALF + tables + rows * model.q_width * HALF + cached(model, rows, storage)


def rotate(rows: int, heads: int, dim: int) -> int:
    return 2 * rows * heads * dim * HALF + rows * dim * 4


def attention(model: Model, batch: int, context: int, storage: str) -> int:
    return cached(model, batch * context, storage) + 2 * batch * model.q_width * HALF


def packed(kind: Any, n: int, k: int) -> int:
    """A matrix as it is stored."""
    import numpy as np

    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in kind.shapes(n, k).values())


def dense(n: int, k: int) -> int:
    return n * k * HALF


def product(weights: int, rows: int, n: int, k: int) -> int:
    """weights: bytes of the matrix."""
    return weights + rows * (n + k) * HALF


def cross_entropy(rows: int, vocab: int, *, gradient: bool) -> int:
    return rows * vocab * HALF * (2 if gradient else 1) + rows * (8 + 4)


def sample(rows: int, vocab: int) -> int:
    return rows * vocab * HALF + rows * 8


INT8 = packing.Packing("int8")
INT4 = packing.Packing("int4", 64, symmetric=False)
