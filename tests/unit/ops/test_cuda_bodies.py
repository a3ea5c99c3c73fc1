"""The ops of a GPU, emulated, give what the composed ones give, through the same functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from qvl import ops
from qvl.ops import cached, native
from qvl.ops.bodies import gpu_for, learner_for, learns_natively, module_for
from qvl.ops.cuda_body import Body, most_keys
from tests.unit.cuda_support import both
from tests.unit.ops.levels import assert_close, normal
from tests.unit.ops.slopes import identical, learning, slopes

pytestmark = pytest.mark.usefixtures("gpu")
EXACT = 5e-6  # some units in the last place of float32, and sums in another order


@pytest.mark.parametrize("width", [17, 1280])
def test_norms(width: int) -> None:
    x, delta = normal(3, 2, width, scale=3), normal(3, 2, width, seed=1)
    weight, bias = normal(width, seed=2), normal(width, seed=3)
    assert_close(*both(lambda: ops.rms_norm(x, weight, 1e-6)), EXACT)
    assert_close(*both(lambda: ops.layer_norm(x, weight, bias, 1e-6)), EXACT)
    for op in (
        lambda: ops.add_rms_norm(x, delta, weight, 1e-6),
        lambda: ops.add_layer_norm(x, delta, weight, bias, 1e-6),
    ):
        for found, wanted in zip(*both(op), strict=True):
            assert_close(found, wanted, EXACT)
    turned = normal(width, 5)
    assert_close(*both(lambda: ops.rms_norm(turned.transpose([1, 0]), weight, 1e-6)), EXACT)


def test_gates() -> None:
    gate, up = normal(3, 40, scale=4), normal(3, 40, seed=1)
    joined = paddle.concat([gate, up], axis=-1)
    for op in (lambda: ops.swiglu(gate, up), lambda: ops.swiglu(joined), lambda: ops.quick_gelu(gate)):
        assert_close(*both(op), EXACT)


def test_half_precision_is_rounded_once() -> None:
    """Paddle has no such arithmetic on a CPU to compare with; its casts round as the kernels do."""
    x, weight = normal(4, 24, scale=3).astype("bfloat16"), normal(24, seed=2).astype("bfloat16")
    with paddle.no_grad():
        found = ops.rms_norm(x, weight, 1e-6)
        exact = ops.rms_norm(x.astype("float32"), weight.astype("float32"), 1e-6)
        assert found.dtype == paddle.bfloat16
        assert_close(found.astype("float32"), exact, 2**-8)
        gated = ops.swiglu(x)
        assert_close(gated.astype("float32"), ops.swiglu(x.astype("float32")), 2**-8)


@pytest.mark.parametrize("again", [False, True], ids=["", "recomputed"])
def test_gradients(gpu: Body, again: bool) -> None:
    x, delta, weight, bias = learning(normal(5, 24), normal(5, 24, seed=1), normal(24, seed=2), normal(24, seed=3))
    wide, up = learning(normal(5, 48, seed=4), normal(5, 24, seed=5))
    heads = learning(normal(5, 3, 16, seed=6))
    cos, sin = ops.half_tables(normal(5, 8, seed=7))
    cases: list[tuple[Any, list[paddle.Tensor]]] = [
        (lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight]),
        (lambda x, d, w: ops.add_rms_norm(x, d, w, 1e-6), [x, delta, weight]),
        (lambda x, w, b: ops.layer_norm(x, w, b, 1e-6), [x, weight, bias]),
        (lambda x, d, w, b: ops.add_layer_norm(x, d, w, b, 1e-6), [x, delta, weight, bias]),
        (lambda x, u: ops.swiglu(x, u), [x, up]),
        (ops.swiglu, [wide]),
        (ops.quick_gelu, [x]),
        (lambda x: ops.attention.turned(x * 1, cos, sin), heads),
    ]
    for op, inputs in cases:
        assert learner_for(*inputs) is gpu
        found, wanted = slopes("auto", None, op, inputs, again=again), slopes("composed", None, op, inputs)
        for one, other in zip([*found[0], *found[1]], [*wanted[0], *wanted[1]], strict=True):
            assert one is not None and other is not None
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(other).max())))
        identical(found, slopes("auto", None, op, inputs, again=again))


def test_gradients_that_nobody_asked_for_are_not_made() -> None:
    x, weight = normal(5, 24), normal(24, seed=2)
    weight.stop_gradient = False
    _, (to_x, to_weight) = slopes("auto", None, lambda x, w: ops.rms_norm(x, w, 1e-6), [x, weight])
    assert to_x is None and to_weight is not None


# Up to 16 new tokens, up to 64 in pieces, and more by another body.
CACHES = [((5, 0, 300), (1, 1, 1)), ((3, 0), (2, 5)), ((4,), (17,)), ((0, 7), (34, 2)), ((3, 9), (65, 1))]


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(("held", "new"), CACHES, ids=str)
@pytest.mark.parametrize("apart", [False, True], ids=["joined", "apart"])
def test_attention_with_caches(held: tuple[int, ...], new: tuple[int, ...], storage: str, apart: bool) -> None:
    heads, kv_heads, dim, rows = 4, 2, 16, sum(new)
    widths = [heads * dim, kv_heads * dim, kv_heads * dim]
    projected = [normal(rows, width, seed=i) for i, width in enumerate(widths)]
    biases = tuple(normal(width, seed=10 + i) for i, width in enumerate(widths)) if apart else None
    cos, sin = ops.half_tables(normal(rows, dim // 2, seed=3))
    before = [[normal(320, kv_heads, dim, seed=20 + 2 * i + j) for j in range(2)] for i in range(len(held))]

    def run() -> list[paddle.Tensor]:
        caches = []
        for (keys, values), start in zip(before, held, strict=True):
            if storage == "int8":
                (keys, key_scales), (values, value_scales) = map(cached.quantize_rows, (keys, values))
                caches.append(ops.CacheRows(keys, values, key_scales, value_scales, start))
            else:
                caches.append(ops.CacheRows(keys.clone(), values.clone(), None, None, start))
        q, k, v = projected if apart else (paddle.concat(projected, axis=-1), None, None)
        out = ops.cached_attention(ops.Projected(q, k, v, biases, cos, sin), caches, new)
        scales = [x for c in caches for x in (c.key_scales, c.value_scales) if x is not None]
        kept = [x.astype("float32") for cache in caches for x in (cache.keys, cache.values)]
        return [out, *kept, *scales]

    # A number at the edge of two of int8 may fall to either side.
    exact = EXACT if storage == "float32" else 0.02
    found, wanted = both(run)
    assert_close(found[0], wanted[0], exact)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert np.abs(one.numpy() - other.numpy()).max() <= (1e-5 if storage == "float32" else 1.0)


def test_vision_attention() -> None:
    qkv = normal(9, 3 * 4 * 16)
    cos, sin = ops.half_tables(normal(9, 8, seed=1))
    kept = qkv.numpy()
    assert_close(*both(lambda: ops.vision_attention(qkv, cos, sin, 4, [5, 4])), EXACT)
    q, k, v = normal(9, 64), normal(9, 32, seed=1), normal(9, 32, seed=2)
    assert_close(*both(lambda: ops.rotary_attention((q, k, v), cos, sin, 16, [5, 4])), EXACT)
    np.testing.assert_array_equal(qkv.numpy(), kept)
    odd = normal(9, 3 * 4 * 12)
    cos, sin = ops.half_tables(normal(9, 6, seed=1))
    assert_close(*both(lambda: ops.vision_attention(odd, cos, sin, 4, [5, 4])), EXACT)


def test_which_body_an_op_takes(gpu: Body) -> None:
    x, weight = normal(3, 8), normal(8, seed=1)
    assert gpu_for(x, weight) is gpu and module_for(x) is None
    assert gpu_for(x, weight.astype("bfloat16")) is None, "types differ"
    assert gpu_for(x.astype("float64")) is None
    weight.stop_gradient = False
    assert gpu_for(x, weight) is None and learner_for(x, weight) is gpu
    assert not learns_natively(x, weight), "which is about bodies of a CPU"
    with native.using("composed"):
        assert gpu_for(x) is learner_for(weight) is None


def test_what_attention_is_planned_for_changes_seldom() -> None:
    assert [most_keys(n) for n in (1, 255, 256, 257, 512, 513, 32768)] == [256, 256, 256, 512, 512, 1024, 32768]
