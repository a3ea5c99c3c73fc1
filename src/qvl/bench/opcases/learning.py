"""Ops as training runs them: forward with what the backward pass needs kept, and both directions together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import paddle

from qvl import ops
from qvl.bench.opcases.case import OpCase, Sizes, normal

_EPSILON = 1e-6
_BOTH = "forward and backward"

Forward = Callable[..., paddle.Tensor]


def rms_norm_grad(sizes: Sizes) -> Iterator[OpCase]:
    width, rows = sizes.config.hidden_size, sizes.tokens
    x, weight = normal(rows, width), normal(width, seed=1)
    call = _both(lambda x, weight: ops.rms_norm(x, weight, _EPSILON), (x, weight))
    yield OpCase("rms_norm_grad", _BOTH, rows, f"{width}", [call], 4 * width * (5 * rows + 3))


def layer_norm_grad(sizes: Sizes) -> Iterator[OpCase]:
    width, rows = sizes.config.vision_config.embed_dim, sizes.patches
    x, weight, bias = normal(rows, width), normal(width, seed=1), normal(width, seed=2)
    call = _both(lambda x, weight, bias: ops.layer_norm(x, weight, bias, _EPSILON), (x, weight, bias))
    yield OpCase("layer_norm_grad", _BOTH, rows, f"{width}", [call], 4 * width * (5 * rows + 5))


def swiglu_grad(sizes: Sizes) -> Iterator[OpCase]:
    inner, rows = sizes.config.intermediate_size, sizes.tokens
    call = _both(ops.swiglu, (normal(rows, inner), normal(rows, inner, seed=1)))
    yield OpCase("swiglu_grad", _BOTH, rows, f"2x{inner}", [call], 4 * inner * 8 * rows)


def quick_gelu_grad(sizes: Sizes) -> Iterator[OpCase]:
    inner, rows = sizes.config.vision_config.intermediate_size, sizes.patches
    call = _both(ops.quick_gelu, (normal(rows, inner),))
    yield OpCase("quick_gelu_grad", _BOTH, rows, f"{inner}", [call], 4 * inner * 5 * rows)


def column_sums(sizes: Sizes) -> Iterator[OpCase]:
    """The gradient of a bias. One input, so that the product beside it takes no time."""
    width, rows = sizes.config.hidden_size, sizes.tokens
    x, weight = normal(rows, 1), normal(1, width, seed=1)
    call = _both(partial(ops.learning_linear, x, weight), (normal(width, seed=2),))
    yield OpCase("column_sums", "bias of one input", rows, f"{width}", [call], 4 * width * (2 * rows + 2))


def product(sizes: Sizes) -> Iterator[OpCase]:
    """A linear layer that learns, rounded; the composed body's products are of float32."""
    width, inner, rows = sizes.config.hidden_size, sizes.config.intermediate_size, sizes.tokens
    work = 6 * rows * width * inner
    moved = 4 * (3 * rows * (width + inner) + 3 * width * inner)
    inputs = (normal(rows, width), normal(width, inner, seed=1))
    call = _rounding(_both(ops.learning_linear, inputs))
    yield OpCase("product", _BOTH, rows, f"{width}x{inner}", [call], moved, work, "bfloat16")


def _rounding(call: Callable[[], object]) -> Callable[[], object]:
    def rounded() -> object:
        with ops.rounding():
            return call()

    return rounded


def attention_learning(sizes: Sizes) -> Iterator[OpCase]:
    forward, inputs, text, moved, work = _attention(sizes)
    call = partial(_recorded, forward, inputs)
    yield OpCase("attention_learning", "causal", sizes.tokens, text, [call], moved, work)


def attention_grad(sizes: Sizes) -> Iterator[OpCase]:
    """Backward takes five products of the forward pass's two."""
    forward, inputs, text, moved, work = _attention(sizes)
    call = _both(forward, inputs)
    yield OpCase("attention_grad", f"causal, {_BOTH}", sizes.tokens, text, [call], 3 * moved, 7 * work // 2)


def _attention(sizes: Sizes) -> tuple[Forward, Sequence[paddle.Tensor], str, int, int]:
    """One sequence from the projections on: the call, its inputs, its sizes, and bytes and operations of a forward."""
    config, rows = sizes.config, sizes.tokens
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    inputs = tuple(normal(rows, count * dim, seed=n) for n, count in enumerate((heads, kv_heads, kv_heads)))
    cos, sin = ops.half_tables(normal(rows, dim // 2, seed=3))

    def forward(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        return ops.rotary_attention((q, k, v), cos, sin, dim, [rows])

    moved = 4 * dim * rows * 2 * (heads + kv_heads)
    return forward, inputs, f"{heads}/{kv_heads}x{dim}", moved, 2 * heads * dim * rows * (rows + 1)


def _recorded(forward: Forward, inputs: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """The op with what its backward pass needs. Whoever times ops has switched recording off."""
    with paddle.enable_grad():
        for x in inputs:
            x.stop_gradient = False
        return forward(*inputs)


def _both(forward: Forward, inputs: Sequence[paddle.Tensor]) -> Callable[[], object]:
    """Forward, and backward from a gradient that is at hand."""
    with paddle.no_grad():
        out = forward(*inputs)
    grad = normal(*out.shape, seed=9)

    def call() -> object:
        out = _recorded(forward, inputs)
        return paddle.grad([out], list(inputs), grad_outputs=[grad])

    return call
