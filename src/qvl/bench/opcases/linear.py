"""Linear layers with packed and with unpacked weights, the packed embedding, and packing itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import paddle

from qvl.bench.opcases.case import Arithmetic, OpCase, Sizes, copies, normal
from qvl.ops import linear, mlp, packing
from qvl.ops.mlp import Gate
from qvl.ops.packing import PackedMatrix, Packing

_PACKINGS = (
    Packing("bf16"),
    Packing("int8"),
    Packing("int8", 128),
    Packing("int4", 128),
    Packing("int4", 32),
    Packing("int4", 64, symmetric=False),
)
# Rows that a language model's embedding is cut to: a call reads a few of them, whatever the rest weighs.
_WORDS = 8192
# A matrix is packed once in its life, in NumPy for seconds: a part of one tells the speed.
_PACKED_ROWS = 512


def packed(sizes: Sizes) -> Iterator[OpCase]:
    """The two largest matrices of a layer: gate and up as one, and down."""
    config = sizes.config
    for how in _PACKINGS:
        for n, k in (
            (2 * config.intermediate_size, config.hidden_size),
            (config.hidden_size, config.intermediate_size),
        ):
            first = _matrix(n, k, how)
            weights = [first, *(_copy(first) for _ in range(copies(sizes, first.nbytes) - 1))]
            layers = [linear.PackedLinear(weight) for weight in weights]
            for rows in (1, sizes.tokens):
                x = normal(rows, k)
                calls = [lambda x=x, layer=layer: linear.linear(x, layer) for layer in layers]
                moved = first.nbytes + 4 * rows * (n + k)
                # Weights of bfloat16 meet float32 activations in a few rows.
                few = how.kind == "bf16" and rows < 16
                kind: Arithmetic = "float32" if few else "bfloat16" if how.kind == "bf16" else "int8"
                yield OpCase("linear", _name(how), rows, f"{k} to {n}", calls, moved, 2 * rows * n * k, kind)


def mlps(sizes: Sizes) -> Iterator[OpCase]:
    """That of the language model for one token and for a prompt, and that of the vision tower for a picture."""
    language, vision = sizes.config, sizes.config.vision_config
    own: tuple[tuple[Gate, int, int, tuple[int, ...]], ...] = (
        ("swiglu", language.hidden_size, language.intermediate_size, (1, sizes.tokens)),
        ("quick_gelu", vision.embed_dim, vision.intermediate_size, (sizes.patches,)),
    )
    for gate, width, inner, counts in own:
        for how in (Packing("bf16"), Packing("int8"), Packing("int4", 128)):
            parts = [_matrix(inner, width, how) for _ in range(2 if gate == "swiglu" else 1)]
            parts.append(_matrix(width, inner, how))
            nbytes = sum(part.nbytes for part in parts)
            sets = [parts, *([_copy(part) for part in parts] for _ in range(copies(sizes, nbytes) - 1))]
            layers = [[linear.PackedLinear(part) for part in each] for each in sets]
            for rows in counts:
                x = normal(rows, width)
                calls = [partial(mlp.mlp, x, each[:-1], each[-1], gate) for each in layers]
                few = how.kind == "bf16" and rows < 16
                kind: Arithmetic = "float32" if few else "bfloat16" if how.kind == "bf16" else "int8"
                operations = 2 * rows * width * inner * len(parts)
                moved = nbytes + 8 * rows * width
                at = f"{width} by {inner}"
                yield OpCase("mlp", f"{gate} {_name(how)}", rows, at, calls, moved, operations, kind)


def dense(sizes: Sizes) -> Iterator[OpCase]:
    """Unpacked float32 weights. The native body is for few rows; more are Paddle's in both bodies."""
    width, inner = sizes.config.hidden_size, sizes.config.intermediate_size
    for in_major in (True, False):
        shape = (width, inner) if in_major else (inner, width)
        matrices = [normal(*shape, seed=n) for n in range(copies(sizes, 4 * width * inner))]
        for rows in (1, 4):
            x = normal(rows, width)
            calls = [partial(linear.linear_dense, x, weight, in_major=in_major) for weight in matrices]
            moved = 4 * (width * inner + rows * (width + inner))
            variant = "float32 [in, out]" if in_major else "float32 [out, in]"
            yield OpCase("linear_dense", variant, rows, f"{width} to {inner}", calls, moved, 2 * rows * width * inner)


def embedding(sizes: Sizes) -> Iterator[OpCase]:
    width = sizes.config.hidden_size
    words = min(_WORDS, sizes.config.vocab_size)
    for how in (Packing("bf16"), Packing("int8"), Packing("int4", 128)):
        layer = linear.PackedLinear(_matrix(words, width, how))
        for rows in (1, sizes.tokens):
            ids = paddle.to_tensor(np.arange(rows, dtype=np.int64) * 29 % words, place=paddle.CPUPlace())
            calls = [partial(linear.embedding, ids, layer)]
            moved = rows * (layer.matrix.nbytes // words + 4 * width)
            yield OpCase("embedding", _name(how), rows, f"{width}", calls, moved)


def pack(sizes: Sizes) -> Iterator[OpCase]:
    n, k = min(_PACKED_ROWS, sizes.config.intermediate_size), sizes.config.hidden_size
    source = normal(n, k).numpy()
    for how in _PACKINGS:
        moved = 4 * n * k + _matrix(n, k, how).nbytes
        calls = [partial(linear.pack, source, how)]
        yield OpCase("pack", _name(how), n, f"{k}", calls, moved)


def unpack(sizes: Sizes) -> Iterator[OpCase]:
    n, k = min(_PACKED_ROWS, sizes.config.intermediate_size), sizes.config.hidden_size
    for how in _PACKINGS:
        matrix = _matrix(n, k, how)
        calls = [partial(linear.unpack, matrix)]
        yield OpCase("unpack", _name(how), n, f"{k}", calls, 4 * n * k + matrix.nbytes)


def _matrix(n: int, k: int, how: Packing) -> PackedMatrix:
    """Random codes and scales, without a matrix that they stand for: packing a large one takes long in NumPy."""
    random = np.random.Generator(np.random.PCG64(0))
    arrays: dict[str, packing.Array] = {}
    for name, (shape, dtype) in how.shapes(n, k).items():
        if name == "scales":
            arrays[name] = (random.random(shape, dtype=np.float32) * np.float32(0.01) + np.float32(0.001)).astype(dtype)
        elif name == "zeros":
            arrays[name] = random.integers(0, 16, shape, dtype=np.uint8)
        elif how.kind == "bf16":
            pool = packing.to_bfloat16(random.standard_normal(1 << 16, dtype=np.float32))
            arrays[name] = np.resize(pool, shape)
        else:
            codes = random.integers(0, 255, 1 << 16, dtype=np.uint8)
            arrays[name] = np.resize(codes, shape).view(dtype)
    return PackedMatrix(how, n, k, **arrays)


def _copy(matrix: PackedMatrix) -> PackedMatrix:
    scales = None if matrix.scales is None else matrix.scales.copy()
    zeros = None if matrix.zeros is None else matrix.zeros.copy()
    return PackedMatrix(matrix.packing, matrix.n, matrix.k, matrix.data.copy(), scales, zeros)


def _name(how: Packing) -> str:
    group = f" g{how.group}" if how.group else ""
    return f"{how.kind}{group}{'' if how.symmetric else ' asym'}"
