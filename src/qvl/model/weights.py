"""Filling a model from a checkpoint folder, a block of rows at a time, and saving it as one.

At no time is more held than the model itself and one block. Loading is strict: every parameter is found, fits and is
filled, and nothing in the files is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn

from qvl.ahead import in_order
from qvl.environment import physical_cores
from qvl.errors import CheckpointError
from qvl.model.checkpoint import LM_HEAD, PATCH_EMBED, Entry, Layout, canonical_name, find_pickle, list_tensors
from qvl.model.config import ModelConfig
from qvl.model.part import Cut, Part
from qvl.model.quantization import EMBEDDING, refuse_quantised
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, bfloat16_bits, bfloat16_to_float32
from qvl.ops import AttentionImpl

Progress = Callable[[int, int], None]

_MAX_READERS = 4
_BLOCK_BYTES = 1024 * 1024  # of a stored tensor; stays in the second-level cache while it is turned
# What a parameter of each dtype is filled through: bfloat16 as its bits, which Paddle takes as such.
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    attention: AttentionImpl = "composed",
    layout: Layout | None = None,
    allow_pickle: bool = False,
    part: Part | None = None,
    on_progress: Progress | None = None,
) -> Qwen2VL:
    """Build the model on Paddle's current device and fill it. Called with (bytes done, bytes in all) as it goes.

    part: build only this part of it, and hold no more of the files than that.
    Raises CheckpointError naming the tensor and file for anything missing, left over, misshapen or cut short.
    """
    model = empty_model(config, dtype, attention, part)
    fill_model(model, folder, dtype, layout=layout, allow_pickle=allow_pickle, on_progress=on_progress)
    return model


def fill_model(
    model: Qwen2VL,
    folder: Path,
    dtype: str,
    *,
    layout: Layout | None = None,
    allow_pickle: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Give every parameter of a model the values in a folder. Raises as `load_model` does."""
    refuse_quantised(folder, "loading them whole")
    pickled = find_pickle(folder)
    if pickled is not None:
        if not allow_pickle:
            raise CheckpointError(
                f"{pickled}: pickled weights can run any code when read; "
                "convert them to safetensors, or give --allow-pickle if you trust where they come from"
            )
        if model.held.size > 1:
            raise CheckpointError(f"{pickled}: pickled weights cannot be read in parts; convert them to safetensors")
        _fill_from_pickle(model, pickled)
        return
    entries = list_tensors(folder, layout)
    _check_complete(model, entries, folder)
    total = sum(_nbytes(entries[name]) for name, _ in model.named_parameters())
    done = 0
    for nbytes in fill_parameters(model, entries, dtype):
        done += nbytes
        if on_progress:
            on_progress(done, total)


def fill_parameters(model: Qwen2VL, entries: Mapping[str, Entry], dtype: str) -> Iterator[int]:
    """Fill the parameters, file by file; yield the stored bytes of each as it is done. Of a quantised model those that
    are not.

    Turning matrices over is bound by the processor, so a few threads share it; each holds one block of its own.
    """
    transposed = linear_weights(model)
    by_file: dict[Path, list[tuple[str, paddle.Tensor]]] = {}
    for name, parameter in model.named_parameters():
        by_file.setdefault(entries[name].path, []).append((name, parameter))
    for path, parameters in by_file.items():
        with SafetensorsFile(path) as file:

            def read(item: tuple[str, paddle.Tensor], file: SafetensorsFile = file) -> npt.NDArray[Any]:
                name, parameter = item
                values = np.zeros(tuple(parameter.shape), _NUMPY_DTYPES[dtype])
                turned = _is_turned(name, entries[name].layout, transposed)
                _read(file, entries[name], values, turned, dtype, model.held.cut(name, model.config))
                return values

            filled = in_order(read, parameters, min(_MAX_READERS, physical_cores()))
            for (name, parameter), values in zip(parameters, filled, strict=True):
                assign(parameter, values)
                yield _nbytes(entries[name])


def empty_model(
    config: ModelConfig, dtype: str, attention: AttentionImpl = "composed", part: Part | None = None
) -> Qwen2VL:
    """A model or a part of one: parameters have shapes and dtypes but no memory yet. In eval mode, gradients off."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        with paddle.LazyGuard():
            model = Qwen2VL(config, attention, part)
    finally:
        paddle.set_default_dtype(before)
    model.eval()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return model


def linear_weights(model: nn.Layer) -> frozenset[str]:
    """Names of the parameters that the two layouts store transposed to each other."""
    return frozenset(f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, nn.Linear))


def _is_turned(name: str, layout: Layout, transposed: frozenset[str]) -> bool:
    """Whether the file has a parameter as its transpose. A convolution is [out, ...] in either layout."""
    return name == PATCH_EMBED or (layout == "hf" and name in transposed)


def _check_complete(model: Qwen2VL, entries: Mapping[str, Entry], folder: Path) -> None:
    wanted = dict(model.named_parameters())
    missing = sorted(wanted.keys() - entries.keys())
    extra = sorted(entries.keys() - wanted.keys())
    if model.lm_head is None and LM_HEAD in extra:
        extra.remove(LM_HEAD)  # some tools store the tied head as well; it is the embedding
    for names, what in ((missing, "is missing"), (extra, "belongs to no part of this model")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"{folder}: tensor {names[0]} {what}{more}")
    transposed = linear_weights(model)
    for name, parameter in wanted.items():
        entry = entries[name]
        shape = list(parameter.shape)
        if (cut := model.held.cut(name, model.config)) is not None:
            shape[cut.axis] = cut.whole
        expected = _stored_shape(name, tuple(shape), model.config, entry.layout, transposed)
        if entry.shape != expected:
            raise CheckpointError(
                f"{entry.path}: {name} has shape {list(entry.shape)}, config.json asks for {list(expected)}"
            )
        if entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(f"{entry.path}: {name} is stored as {entry.dtype}; qvl reads floating point weights")


def _stored_shape(
    name: str, shape: tuple[int, ...], config: ModelConfig, layout: Layout, transposed: frozenset[str]
) -> tuple[int, ...]:
    """The shape a parameter has in the file."""
    if name == PATCH_EMBED:
        vision = config.vision_config
        side = vision.patch_size
        return (vision.embed_dim, vision.in_channels, vision.temporal_patch_size, side, side)
    if name in transposed and layout == "hf":
        return shape[::-1]
    return shape


def _read(
    file: SafetensorsFile, entry: Entry, target: npt.NDArray[Any], turned: bool, dtype: str, cut: Cut | None
) -> None:
    """Fill `target` from one stored tensor; `turned`: the file has it as the transpose, further axes flattened.

    cut: the stretch of it that `target` is.
    """
    widened = entry.dtype == "BF16" and dtype == "float32"
    if widened:
        # A bfloat16 is the upper half of a float32, so its bits go straight there; the lower half is zero already.
        target = target.view(np.uint16).reshape(*target.shape, 2)[..., 1]
    view = target.T if turned else target.reshape(len(target), -1)
    rows = columns = slice(None)
    if cut is not None:
        held = slice(cut.start, cut.stop)
        rows, columns = (slice(None), held) if turned != (cut.axis == 1) else (held, slice(None))
    row_bytes = max(1, _nbytes(entry) // max(1, entry.shape[0]))
    start = 0
    for block in file.rows(entry.name, max(1, _BLOCK_BYTES // row_bytes), rows):
        block = block[:, columns]
        view[start : start + len(block)] = block if widened else _convert(block, entry.dtype, dtype)
        start += len(block)
    if dtype == "float16" and not np.isfinite(target).all():
        raise CheckpointError(f"{entry.path}: {entry.name} does not fit in float16; use bfloat16 or float32")


def _convert(block: npt.NDArray[Any], stored: str, dtype: str) -> npt.NDArray[Any]:
    """Stored values to what a parameter of `dtype` is filled through."""
    if stored == "BF16":
        return block if dtype == "bfloat16" else bfloat16_to_float32(block).astype(_NUMPY_DTYPES[dtype], copy=False)
    if dtype == "bfloat16":
        return bfloat16_bits(block.astype(np.float32))
    with np.errstate(over="ignore"):  # an overflow to float16 is reported with the tensor's name
        return block.astype(_NUMPY_DTYPES[dtype], copy=False)


def laid_out(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A parameter in the Hugging Face layout, as a model of Paddle's own layers has it."""
    if name == PATCH_EMBED:
        values = values.reshape(len(values), -1).T
    elif values.ndim == 2 and name != EMBEDDING:
        values = values.T
    return np.ascontiguousarray(values)


def converted(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Numbers as a parameter of `dtype` is filled with them, see `assign`."""
    return np.ascontiguousarray(_convert(values, "F32", dtype))


def assign(parameter: paddle.Tensor, values: npt.NDArray[Any]) -> None:
    """Give a parameter its memory: on a CPU the array itself, elsewhere a copy on the device."""
    if values.dtype == np.float32 and paddle.device.get_device() == "cpu":
        tensor = paddle.utils.dlpack.from_dlpack(values.__dlpack__())
    else:
        tensor = paddle.to_tensor(values)  # uint16 is taken as bfloat16 bits
    tensor._share_underline_tensor_to(parameter)


def _fill_from_pickle(model: Qwen2VL, path: Path) -> None:
    """Paddle's own `.pdparams`: a dictionary of arrays in Paddle's layout."""
    if path.suffix != ".pdparams":
        raise CheckpointError(f"{path}: PyTorch pickles need PyTorch to read; convert them to safetensors first")
    try:
        state = paddle.load(str(path), return_numpy=True)
    except Exception as error:
        raise CheckpointError(f"{path}: Paddle cannot read it ({type(error).__name__}: {error})") from None
    state = {canonical_name(name): value for name, value in state.items()}
    wanted = dict(model.named_parameters())
    if model.lm_head is None:
        state.pop(LM_HEAD, None)
    for name in sorted(wanted.keys() ^ state.keys()):
        raise CheckpointError(f"{path}: tensor {name} {'is missing' if name in wanted else 'belongs nowhere'}")
    for name, parameter in wanted.items():
        value = np.asarray(state.pop(name))
        if name == PATCH_EMBED:
            value = value.reshape(value.shape[0], -1).T
        if value.shape != tuple(parameter.shape):
            raise CheckpointError(f"{path}: {name} has shape {list(value.shape)}, expected {list(parameter.shape)}")
        stored = "BF16" if value.dtype == np.uint16 else "F32"
        dtype = str(parameter.dtype).removeprefix("paddle.")
        assign(parameter, np.ascontiguousarray(_convert(value, stored, dtype)))


def _nbytes(entry: Entry) -> int:
    return int(np.prod(entry.shape, dtype=np.int64)) * STORED_DTYPES[entry.dtype].itemsize
