"""Saving a model as a Hugging Face folder that transformers and qvl both load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import paddle

from qvl.errors import CheckpointError
from qvl.model.checkpoint import PATCH_EMBED
from qvl.model.checkpoint_writer import DEFAULT_SHARD_BYTES, copy_processor_files, write_config, write_weights
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.unfinished import unfinished
from qvl.model.weights import linear_weights

_BLOCK_ROWS = 512


def save_model(
    model: Qwen2VL,
    folder: Path,
    *,
    source: Path,
    dtype: str = "bfloat16",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    whole: Callable[[str, paddle.Tensor], paddle.Tensor] = lambda _, parameter: parameter,
) -> None:
    """Write config, weights in Hugging Face layout, and the processor files of `source`.

    dtype: of the stored weights. whole: from the name of a parameter and what this model has of it, where it is a part
    of one, to all of it; called once for each, in their order. The folder appears when it is complete, never half; it
    must not exist before. Raises CheckpointError when it does.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: is already there; choose another folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as partial:
        write_config(partial, model.config, dtype)
        copy_processor_files(source, partial)
        _write_parameters(model, partial, dtype, shard_bytes, whole)
        partial.chmod(0o755)  # others are kept out so far, which a finished checkpoint need not
        partial.rename(folder)


def _write_parameters(
    model: Qwen2VL,
    folder: Path,
    dtype: str,
    shard_bytes: int,
    whole: Callable[[str, paddle.Tensor], paddle.Tensor],
) -> None:
    parameters = dict(model.named_parameters())
    transposed = linear_weights(model)
    vision = model.config.vision_config
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in parameters.items():
        shape = list(parameter.shape)
        if (cut := model.held.cut(name, model.config)) is not None:
            shape[cut.axis] = cut.whole
        shapes[name] = tuple(shape[::-1] if name in transposed else shape)
    side = vision.patch_size
    shapes[PATCH_EMBED] = (vision.embed_dim, vision.in_channels, vision.temporal_patch_size, side, side)

    def produce(name: str) -> Iterator[npt.NDArray[Any]]:
        parameter = whole(name, parameters[name]).astype("float32")  # exact, and back again for 16-bit weights
        if name not in transposed:
            yield parameter.numpy()
            return
        for start in range(0, parameter.shape[1], _BLOCK_ROWS):
            yield parameter[:, start : start + _BLOCK_ROWS].transpose([1, 0]).numpy()

    write_weights(folder, shapes, dtype, produce, shard_bytes=shard_bytes)
