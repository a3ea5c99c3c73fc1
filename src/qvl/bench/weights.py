"""Random weights of any published shape, made on the spot and kept: a benchmark needs the shape alone. No Paddle."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

from qvl.bench.records import Watcher
from qvl.errors import CheckpointError, MemoryLimitError, UsageError
from qvl.hub.locate import find
from qvl.hub.places import qvl_home
from qvl.hub.random_checkpoint import GENERATOR_VERSION, Dtype, write_checkpoint, write_settings
from qvl.model.config import ModelConfig
from qvl.model.foreign import published_foreign
from qvl.model.shapes import parameter_shapes, published_config
from qvl.model.unfinished import remove_left_over, unfinished

_GIB = 1024**3
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def shape_of(model: str) -> ModelConfig:
    """The shape of a model, which need not be here if it is a published one. Raises CheckpointError, UsageError."""
    if published_foreign(model) is not None:
        raise UsageError(
            f"--random-weights: {model} is quantised, random weights are not; take the original and --quant"
        )
    published = published_config(model)
    if published is not None:
        return published
    folder = find(model)
    if folder is None:
        raise UsageError(
            f"--random-weights: the shape of {model} is not known; name a published Qwen2-VL or a folder with a "
            "config.json"
        )
    return ModelConfig.from_folder(folder)


def write_small_files(folder: Path, config: ModelConfig) -> None:
    """All of a checkpoint but its weights: what is needed to know whether it would fit. Raises UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_settings(folder, config, dtype=_dtype(config))
    except ValueError as error:
        raise UsageError(f"--random-weights: {error}") from None


def stored_bytes(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values()) * _ITEMSIZE[_dtype(config)]


def folder_of(model: str, config: ModelConfig) -> Path:
    """Where random weights of that shape are kept, there or not."""
    said = json.dumps([GENERATOR_VERSION, _dtype(config), config.to_dict()], sort_keys=True)
    name = Path(model).name.lower().removesuffix("-instruct") or "model"
    return qvl_home() / "bench" / f"{name}-random-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def random_folder(model: str, config: ModelConfig, watcher: Watcher) -> Path:
    """The folder of the random checkpoint, which is made if it is not there yet; it appears in one step.

    Raises CheckpointError when it cannot be written, and MemoryLimitError when the disk is too full.
    """
    folder, size = folder_of(model, config), stored_bytes(config)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < size * 1.02:
            raise MemoryLimitError(
                f"random weights of this shape take {size / _GIB:.1f} GiB on disk, {folder.parent} has "
                f"{free / _GIB:.1f} GiB; free some, or set QVL_HOME"
            )
        what = f"{size / _GIB:.1f} GiB of random weights"
        watcher.note(f"{what} are written to {folder} once; remove it when you are done")
        watcher.say(f"writing {what}")
        with unfinished(folder) as making:
            write_checkpoint(making, config, dtype=_dtype(config))
            making.chmod(0o755)
            try:
                making.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same content
                    raise
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error}); set QVL_HOME") from None
    return folder


def _dtype(config: ModelConfig) -> Dtype:
    """As the published files of that shape are stored."""
    known: dict[str, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
    return known.get(config.torch_dtype, "bfloat16")
