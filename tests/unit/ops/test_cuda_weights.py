"""Packed weights, sampling and the loss on a GPU, emulated; and what bindings say of operands that do not fit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl import ops
from qvl.ops import cuda, cuda_linear, linear, packing
from qvl.ops.cuda_body import Body
from qvl.ops.linear import PackedLinear
from qvl.ops.mlp import mlp
from qvl.ops.packing import Packing
from qvl.ops.sampling import Draw, SamplingRule, sample, sample_rows
from tests.unit.ops.levels import normal

PACKINGS = [Packing("int8"), Packing("int8", 64), Packing("int4", 64), Packing("int4", 32, symmetric=False)]
Floats = npt.NDArray[np.float32]


def moved(gpu: Body, n: int, k: int, how: Packing, seed: int = 0) -> tuple[PackedLinear, Floats, Floats]:
    """A layer on the GPU; what is left of its matrix [n, k], and its bias."""
    random = np.random.default_rng([n, k, seed])
    matrix = packing.pack(random.normal(size=(n, k)).astype(np.float32), how)
    bias = random.normal(size=n).astype(np.float32)
    layer = PackedLinear(matrix, bias)
    wide = packing.unpack(matrix)
    layer.move(gpu)
    assert not hasattr(layer, "matrix") and layer.bias is None, "it is there and nowhere else"
    return layer, wide, bias


def close(found: paddle.Tensor, wanted: Floats, scale: Floats) -> None:
    """Operands have 8 bits: each product and the result are rounded to them, and sums are not."""
    assert (np.abs(found.astype("float32").numpy() - wanted) <= 2**-7 * scale).all()


@pytest.mark.parametrize("how", PACKINGS, ids=lambda how: f"{how.kind}-{how.group}-{how.symmetric}")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_linear(gpu: Body, how: Packing, dtype: str) -> None:
    first, second = moved(gpu, 24, 96, how), moved(gpu, 40, 96, how, seed=1)
    weight, bias = np.concatenate([first[1], second[1]]), np.concatenate([first[2], second[2]])
    for shape in ((96,), (5, 96), (2, 3, 96)):
        x, residual = normal(*shape).astype(dtype), normal(*shape[:-1], 64, seed=1).astype(dtype)
        wide, added = x.astype("float32").numpy(), residual.astype("float32").numpy()
        with paddle.no_grad():
            found = linear.linear(x, [first[0], second[0]], residual)
        assert found.dtype == x.dtype and found.shape == residual.shape
        close(found, wide @ weight.T + bias + added, np.abs(wide) @ np.abs(weight.T) + np.abs(bias) + np.abs(added))


def test_many_rows_take_a_dense_product_block_by_block(gpu: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle multiplies in float32 only on a CPU: a stand-in widens."""
    monkeypatch.setattr(cuda_linear, "_AT_ONCE", 96 * 10)
    multiply, blocks = paddle.matmul, []

    def widened(x: Any, y: Any, transpose_y: bool) -> Any:
        blocks.append(y.shape[0])
        return multiply(x.astype("float32"), y.astype("float32"), transpose_y=transpose_y)

    monkeypatch.setattr(paddle, "matmul", widened)
    layer, weight, _ = moved(gpu, 24, 96, Packing("int8"))
    x = normal(gpu.most_rows + 1, 96).astype("bfloat16")
    wide = x.astype("float32").numpy()
    with monkeypatch.context() as patched, paddle.no_grad():
        patched.setattr(layer.moved, "bias", None)  # which Paddle cannot add here
        found = linear.linear(x, layer)
    assert blocks == [10, 10, 4]
    close(found, wide @ weight.T, np.abs(wide) @ np.abs(weight.T))


@pytest.mark.parametrize("how", PACKINGS, ids=lambda how: f"{how.kind}-{how.group}-{how.symmetric}")
def test_rows_of_a_matrix_are_vectors_of_tokens(gpu: Body, how: Packing) -> None:
    layer, weight, _ = moved(gpu, 24, 96, how)
    ids = paddle.to_tensor([[3, 23], [0, 3]])
    found = linear.embedding(ids, layer, "float16")
    assert found.dtype == paddle.float16 and found.shape == [2, 2, 96]
    np.testing.assert_array_equal(found.numpy(), weight[ids.numpy()].astype(np.float16))


def test_the_mlp_is_its_three_ops(gpu: Body) -> None:
    how = Packing("int4", 32, symmetric=False)
    gate, up, down = moved(gpu, 64, 96, how)[0], moved(gpu, 64, 96, how, seed=1)[0], moved(gpu, 96, 64, how)[0]
    x = normal(3, 96).astype("bfloat16")
    with paddle.no_grad():
        found = mlp(x, [gate, up], down, "swiglu", x)
        hidden = ops.swiglu(linear.linear(x, gate), linear.linear(x, up))
        wanted = linear.linear(hidden, down, x)
    np.testing.assert_array_equal(found.astype("float32").numpy(), wanted.astype("float32").numpy())


def test_bfloat16_matrices_stay_on_a_cpu(gpu: Body) -> None:
    with pytest.raises(ValueError, match="linear: kind must be int8 or int4 on a GPU"):
        moved(gpu, 16, 32, Packing("bf16"))


RULES = [
    SamplingRule(),
    SamplingRule(temperature=0.8, top_k=5),
    SamplingRule(temperature=1.2, top_p=0.7, min_p=0.01),
    SamplingRule(temperature=0.5, repetition_penalty=1.5),
    SamplingRule(repetition_penalty=0.5),
]


def ids(*numbers: int) -> npt.NDArray[np.int64]:
    return np.asarray(numbers, np.int64)


@pytest.mark.usefixtures("gpu")
def test_tokens_of_several_rows_are_those_of_each() -> None:
    logits = normal(len(RULES), 700, scale=3)
    for uniform in (0.0, 0.4, 0.93):
        draws = [
            Draw(rule, ids(4, 10**6, 9)[: i % 4], ids(7, 300, 2)[: (i + 1) % 3], uniform)
            for i, rule in enumerate(RULES)
        ]
        assert ops.samples_there(logits)
        found = sample_rows(logits, draws)
        wanted = [
            sample(row, d.rule, d.seen, d.banned, d.uniform) for row, d in zip(logits.numpy(), draws, strict=True)
        ]
        assert found == wanted
    logits[1] = float("nan")
    assert [token is None for token in sample_rows(logits, draws)] == [False, True, False, False, False]


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_and_its_gradients(gpu: Body, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl.training.loss import linear_cross_entropy

    calls = []
    kernel = Body.cross_entropy
    monkeypatch.setattr(Body, "cross_entropy", lambda *given: calls.append(1) or kernel(*given))
    made = []
    for mode in ("auto", "composed"):
        hidden, weight = normal(7, 16), normal(*((50, 16) if tied else (16, 50)), seed=1)
        hidden.stop_gradient = weight.stop_gradient = False
        with ops.bodies.native.using(mode):  # type: ignore[arg-type]
            loss = linear_cross_entropy(hidden, weight, paddle.arange(7) * 7, tied=tied, chunk=3)
            loss.backward()
        made.append([loss.numpy(), hidden.grad.numpy(), weight.grad.numpy()])
    assert len(calls) == 3 and gpu.emulated
    for found, wanted in zip(*made, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named(gpu: Body) -> None:
    x, half = normal(4, 6), normal(4, 6).astype("float16")
    cos, heads = normal(4, 8), normal(4, 2, 16)
    room = normal(9, 2, 16)
    layer = moved(gpu, 16, 96, Packing("int8"))[0]
    assert layer.moved is not None
    handle = layer.moved.handle
    one = [(room, room.clone(), None, None, 3, 4)]
    starts = ops.starts_of([3])
    refused: list[tuple[str, Any]] = [
        (r"rms_norm: weight has shape \[5\], \[6\] is needed", lambda: gpu.rms_norm(x, normal(5), 1e-6)),
        (r"rms_norm: weight must be float16, not float32", lambda: gpu.rms_norm(half, normal(6), 1e-6)),
        (r"rms_norm: x must be bfloat16, float16 or float32", lambda: gpu.rms_norm(x.astype("int64"), x, 1e-6)),
        (r"layer_norm: bias has shape", lambda: gpu.layer_norm(x, normal(6), normal(7), 1e-6)),
        (r"add_rms_norm: delta has shape", lambda: gpu.add_rms_norm(x, normal(3, 6), normal(6), 1e-6)),
        (r"quick_gelu: x must be contiguous", lambda: gpu.quick_gelu(x.transpose([1, 0]))),
        (r"swiglu: gate has shape .* must be even", lambda: gpu.swiglu(normal(4, 5))),
        (r"swiglu: up has shape", lambda: gpu.swiglu(x, normal(4, 5))),
        (r"rotate: cos has shape", lambda: gpu.rotate(heads, normal(3, 8), cos)),
        (r"rotate: x must have the elements of a row", lambda: gpu.rotate(heads.transpose([0, 2, 1]), cos, cos)),
        (
            r"attention: caches has room for 9 tokens, not for 8 behind 3",
            lambda: gpu.attention(heads, [(room, room, None, None, 3, 8)], starts, 11),
        ),
        (r"attention: caches must take as many new rows", lambda: gpu.attention(normal(3, 2, 16), one, starts, 7)),
        (r"attention: starts must be int32, not int64", lambda: gpu.attention(heads, one, starts.astype("int64"), 7)),
        (
            r"attention: keys must be float16, not float32",
            lambda: gpu.attention(heads.astype("float16"), one, starts, 7),
        ),
        (
            r"attention: values has shape",
            lambda: gpu.attention(heads, [(room, normal(8, 2, 16), None, None, 3, 4)], starts, 7),
        ),
        (
            r"attention: key_scales are for int8",
            lambda: gpu.attention(heads, [(room, room, normal(9, 2), None, 3, 4)], starts, 7),
        ),
        (r"rotary_store: q has shape", lambda: gpu.rotary_store(x, None, None, (None,) * 3, cos, cos, 2, one, starts)),
        (r"linear: x has shape .* its last size must be 96", lambda: gpu.linear(half, [handle], None)),
        (r"linear: residual has shape", lambda: gpu.linear(normal(1, 96).astype("float16"), [handle], half)),
        (r"linear: no kernel takes operands of these types", lambda: gpu.linear(normal(1, 96), [handle], None)),
        (r"linear: x must have 1 to 64 rows, not 65", lambda: gpu.linear(normal(65, 96), [handle], None)),
        (r"unpack: dtype must be bfloat16 or float16", lambda: gpu.unpack(handle, "float32")),
        (r"unpack: rows must be int64", lambda: gpu.unpack(handle, "float16", starts)),
        (r"sample: settings has shape", lambda: gpu.sample(x, paddle.zeros([3], "uint8"), 0, 0)),
        (r"cross_entropy: targets has shape", lambda: gpu.cross_entropy(x, paddle.zeros([3], "int64"))),
    ]
    for words, call in refused:
        with pytest.raises(ValueError, match=words):
            call()


def test_a_library_that_does_not_fit_is_refused(gpu: Body, tmp_path: Any) -> None:
    file = tmp_path / "wrong.so"
    file.write_bytes(b"no library")
    with pytest.raises(RuntimeError, match=re.escape(str(file))), cuda.emulating(file):
        pass
    other = ops.bodies.native.installed()[0]
    with pytest.raises(RuntimeError, match="has no qvl_cuda_abi"), cuda.emulating(other.__file__):
        pass
    assert cuda.library() is gpu, "and the one before is in its place again"
