"""Quantised layers on a GPU, by Paddle's `weight_quantize` and `weight_only_linear`: the only file that calls them.

The language model's projections alone are quantised; the tower, the token vectors and the head keep their dtype.
Paddle has these kernels for GPUs only; tests put a stand-in in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import paddle
from paddle.nn import quant

from qvl.errors import DeviceError
from qvl.model.config import ModelConfig
from qvl.model.packed import Projection, projections, replace_linears
from qvl.model.quantization import Quantization, Scheme
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.shapes import parameter_shapes
from qvl.model.weights import assign, converted, empty_model, laid_out
from qvl.ops import AttentionImpl

Floats = npt.NDArray[np.float32]

# Paddle's kernels read weights in tiles of this many inputs and outputs.
_TILE_IN, _TILE_OUT = 64, 16


class WeightOnlyProjection(Projection):
    """Linears of one input as a single matrix, in Paddle's own layout for its kernels."""

    def __init__(self, names: Sequence[str], widths: Sequence[int], inputs: int, scheme: Scheme, dtype: str) -> None:
        """Raises DeviceError for sizes that Paddle's kernels do not take."""
        super().__init__(names, widths, inputs)
        if inputs % max(_TILE_IN, scheme.group) or sum(widths) % _TILE_OUT:
            raise DeviceError(
                f"{names[0]}: Paddle's weight-only products take inputs in multiples of "
                f"{max(_TILE_IN, scheme.group)} and outputs of {_TILE_OUT}, not {inputs} and {sum(widths)}; "
                "leave out --quant"
            )
        self.dtype = getattr(paddle, dtype)
        self._kind, self._group = scheme.kind, scheme.group or -1
        self._weight: paddle.Tensor | None = None
        self._scale: paddle.Tensor | None = None
        self._bias: paddle.Tensor | None = None

    def give(self, weights: Sequence[Floats], biases: Sequence[Floats]) -> None:
        """Quantise float32 [outputs, inputs] of each linear, side by side, on the device. biases: of all, or none."""
        # One after the other, so that no more than this projection is there in full.
        joined = np.concatenate([np.ascontiguousarray(weight.T) for weight in weights], axis=1)
        full = paddle.to_tensor(joined).astype(self.dtype)
        self._weight, self._scale = quant.weight_quantize(
            full, algo=f"weight_only_{self._kind}", group_size=self._group
        )
        if biases:
            self._bias = paddle.to_tensor(np.concatenate(biases)).astype(self.dtype)

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> paddle.Tensor:
        out = quant.weight_only_linear(
            x,
            self._weight,
            bias=self._bias,
            weight_scale=self._scale,
            weight_dtype=self._kind,
            group_size=self._group,
        )
        return out if residual is None else out + residual


def load(
    config: ModelConfig,
    quantization: Quantization,
    dtype: str,
    attention: AttentionImpl,
    floats: Callable[[str], Floats],
) -> Qwen2VL:
    """A model on Paddle's current device. floats: gives a parameter in float32 and the Hugging Face layout.

    Raises DeviceError for shapes that Paddle's kernels do not take.
    """
    model = empty_model(config, dtype, attention)

    def make(names: Sequence[str], widths: Sequence[int], inputs: int) -> Projection:
        return WeightOnlyProjection(names, widths, inputs, quantization.language, dtype)

    replace_linears(model, quantization, make)
    shapes = parameter_shapes(config)
    for layer in projections(model):
        assert isinstance(layer, WeightOnlyProjection)
        biases = [f"{name}.bias" for name in layer.names if f"{name}.bias" in shapes]
        layer.give([floats(f"{name}.weight") for name in layer.names], [floats(name) for name in biases])
    for name, parameter in model.named_parameters():
        assign(parameter, converted(laid_out(name, floats(name)), dtype))
    return model
