"""Filling a quantised model: from a folder that holds it so, which is mapped, or from any other, matrix by matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import paddle

from qvl.errors import DeviceError
from qvl.model import weight_only
from qvl.model.checkpoint import Layout
from qvl.model.config import ModelConfig
from qvl.model.packed import PackedProjection, give_weights, replace_linears
from qvl.model.packed_store import Mapped, Progress
from qvl.model.packing import Source
from qvl.model.quantization import Quantization, matrix_shapes, stored_quantization
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.shapes import parameter_shapes
from qvl.model.weights import assign, converted, empty_model, fill_parameters, laid_out
from qvl.ops import AttentionImpl, cuda
from qvl.ops.cuda_body import Body
from qvl.ops.linear import PackedLinear
from qvl.ops.packing import PackedMatrix

Floats = npt.NDArray[np.float32]


def load_quantised(
    folder: Path,
    config: ModelConfig,
    quantization: Quantization,
    *,
    dtype: str = "float32",
    attention: AttentionImpl = "composed",
    layout: Layout | None = None,
    on_progress: Progress | None = None,
) -> Qwen2VL:
    """Build a quantised model on Paddle's current device. on_progress: called with (bytes done, bytes in all).

    quantization: that of the folder where it is quantised already; on a CPU its matrices then stay where the file is
    mapped, and elsewhere no more is held than the result and one matrix. dtype: of what is not quantised.
    Raises CheckpointError naming the tensor and file for anything missing, left over, misshapen or cut short.
    """
    build = _Builder(config, quantization, dtype, attention)
    if stored_quantization(folder) is not None:
        mapped = Mapped(folder, config, quantization)
        model = build.model(mapped.matrix, mapped.floats)
        for name, parameter in model.named_parameters():
            assign(parameter, converted(laid_out(name, mapped.floats(name)), dtype))
        return model
    with Source(folder, config, layout) as source:
        total, done = sum(source.nbytes(name) for name in parameter_shapes(config)), 0

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if on_progress:
                on_progress(done, total)

        def matrix(name: str) -> PackedMatrix:
            scheme = quantization.scheme_of(name)
            assert scheme is not None
            packed = source.matrix(name, scheme.packing())
            count(source.nbytes(name))
            return packed

        def floats(name: str) -> Floats:
            values = source.floats(name)
            count(source.nbytes(name))
            return values

        if quantization.embedding is None and source.foreign is None:  # what Paddle's own products run
            return weight_only.load(config, quantization, dtype, attention, floats)
        model = build.model(matrix, floats)
        for nbytes in fill_parameters(model, source.entries, dtype):
            count(nbytes)
        return model


@dataclass(frozen=True)
class _Builder:
    config: ModelConfig
    quantization: Quantization
    dtype: str
    attention: AttentionImpl

    def model(self, matrix: Callable[[str], PackedMatrix], floats: Callable[[str], Floats]) -> Qwen2VL:
        """With its packed layers filled, on Paddle's current device. matrix, floats: give a parameter, packed or in the
        Hugging Face layout.
        """
        gpu = _gpu()
        model = empty_model(self.config, self.dtype, self.attention)
        replace_linears(model, self.quantization, self._projection, self.dtype)
        shapes, weights = parameter_shapes(self.config), {}
        for name in matrix_shapes(self.config):
            if self.quantization.scheme_of(name) is None:
                continue
            module = name.removesuffix(".weight")
            bias = f"{module}.bias"
            weights[module] = PackedLinear(matrix(name), floats(bias) if bias in shapes else None)
            if gpu is not None:
                weights[module].move(gpu)
        give_weights(model, weights)
        return model

    def _projection(self, names: Sequence[str], widths: Sequence[int], inputs: int) -> PackedProjection:
        made = PackedProjection(names, widths, inputs)
        made.dtype = getattr(paddle, self.dtype)
        return made


def _gpu() -> Body | None:
    """The ops that packed weights are moved for, where Paddle's current device is a GPU."""
    if not cuda.emulated() and not paddle.device.get_device().startswith("gpu"):
        return None
    body = cuda.library()
    if body is None:
        raise DeviceError(f"packed weights run on a GPU by the native ops for it: {cuda.why_not()}")
    return body
