"""The ops of a GPU. Norms and gates have the names and arguments of those of a CPU, so that either may be called.

All of them run on the stream that is Paddle's current one for the current device, where their operands have to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

# Where the context is split for decoding depends on the number of keys only by steps of this, doubled; a CUDA graph,
# which has the split in it, is good for a whole step.
_LEAST_KEYS = 256


class Body:
    """module: that of the bindings. library: what it opened."""

    def __init__(self, module: Any, library: Any) -> None:
        self._module, self._library = module, library
        self.emulated: bool = library.emulated
        self.architectures: str = library.architectures
        self.most_queries: int = library.MOST_QUERIES
        self.most_rows: int = library.MOST_ROWS

    def stream(self) -> int:
        """The address of Paddle's current stream."""
        return 0 if self.emulated else int(paddle.device.current_stream().stream_base.cuda_stream)

    def rms_norm(self, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        return self._library.rms_norm(x, weight, epsilon, self.stream())

    def add_rms_norm(self, x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> Any:
        return self._library.add_rms_norm(x, delta, weight, epsilon, self.stream())

    def layer_norm(self, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        return self._library.layer_norm(x, weight, bias, epsilon, self.stream())

    def add_layer_norm(
        self, x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
    ) -> Any:
        return self._library.add_layer_norm(x, delta, weight, bias, epsilon, self.stream())

    def rms_norm_grad(self, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, *rest: Any) -> Any:
        """rest: grad, grad_sum or None, and which of x, weight and bias are wanted; so for layer_norm_grad."""
        return _as(weight, self._library.rms_norm_grad(x, weight, epsilon, *rest, self.stream()))

    def layer_norm_grad(self, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, *rest: Any) -> Any:
        return _as(weight, self._library.layer_norm_grad(x, weight, epsilon, *rest, self.stream()))

    def swiglu(self, gate: paddle.Tensor, up: paddle.Tensor | None = None) -> paddle.Tensor:
        return self._library.swiglu(gate, up, self.stream())

    def swiglu_grad(self, gate: paddle.Tensor, up: paddle.Tensor | None, grad: paddle.Tensor) -> Any:
        return self._library.swiglu_grad(gate, up, grad, self.stream())

    def quick_gelu(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._library.quick_gelu(x, self.stream())

    def quick_gelu_grad(self, x: paddle.Tensor, grad: paddle.Tensor) -> paddle.Tensor:
        return self._library.quick_gelu_grad(x, grad, self.stream())

    def rotate(self, x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor, *, back: bool = False) -> None:
        """Turn the heads of x [N, heads, D] where they lie, or back. cos, sin: float32 [N, D/2]."""
        self._library.rotate(x, cos, sin, back, self.stream())

    def rotary_store(self, *operands: Any) -> paddle.Tensor:
        """q, k, v, biases, cos, sin, heads, caches, starts: see `cached`."""
        return self._library.rotary_store(*operands, self.stream())

    def attention(
        self, q: paddle.Tensor, caches: Sequence[tuple[Any, ...]], starts: paddle.Tensor, keys: int
    ) -> paddle.Tensor:
        """Up to `most_queries` new tokens of each sequence over its cache. q: [N, heads, D]. keys: the most of any."""
        return self._library.attention(q, caches, starts, most_keys(keys), self.stream())

    def weight(self, kind: str, n: int, k: int, group: int, *arrays: paddle.Tensor | None) -> Any:
        """What `linear` and `unpack` take. arrays: data, scales, zeros and bias, those that there are."""
        return self._module.CudaWeight(self._library, kind, n, k, group, *arrays)

    def linear(self, x: paddle.Tensor, weights: Sequence[Any], residual: paddle.Tensor | None) -> paddle.Tensor:
        """x: [..., k] of up to `most_rows` rows."""
        return self._library.linear(x, list(weights), residual, self.stream())

    def unpack(self, weight: Any, dtype: str, rows: paddle.Tensor | None = None) -> paddle.Tensor:
        """The matrix [n, k], or some rows of it, as bfloat16 or float16."""
        return self._library.unpack(weight, rows, dtype, self.stream())

    def sample(self, logits: paddle.Tensor, settings: paddle.Tensor, seen: int, banned: int) -> paddle.Tensor:
        """Tokens int64 [rows]; settings: bytes, see `sampling`."""
        return self._library.sample(logits, settings, seen, banned, self.stream())

    def cross_entropy(self, logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        """Losses float32 [rows] of logits [rows, vocabulary], which become the gradients of their sum."""
        return self._library.cross_entropy(logits, targets, None, 1.0, True, self.stream())


def most_keys(keys: int) -> int:
    """What attention over so many keys is planned for."""
    return max(_LEAST_KEYS, 1 << (keys - 1).bit_length())


def _as(weight: paddle.Tensor, made: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Gradients of parameters in the parameter's type; kernels give float32."""
    to_x, to_weight, to_bias = made

    def narrowed(x: paddle.Tensor | None) -> paddle.Tensor | None:
        return x if x is None or x.dtype == weight.dtype else x.astype(weight.dtype)

    return to_x, narrowed(to_weight), narrowed(to_bias)
