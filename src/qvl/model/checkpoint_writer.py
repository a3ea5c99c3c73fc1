"""Writing a Hugging Face checkpoint folder, tensor by tensor. NumPy only.

Used by whatever makes weights: saving a model, merging an adapter, random checkpoints. Rows are asked for when they are
due, so memory stays at one block whatever the size of the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError
from qvl.model.checkpoint import PROCESSOR_FILES
from qvl.model.config import ModelConfig
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsWriter, bfloat16_bits

# dtype in config.json -> stored dtype.
STORED_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DEFAULT_SHARD_BYTES = 5 * 1000**3  # what transformers cuts at

# Rows of the tensor of that name, in order, in its stored shape flattened to [rows, rest] or as a whole; float32, or
# uint16 bits when the file is bfloat16.
Produce = Callable[[str], Iterable[npt.NDArray[Any]]]


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    produce: Produce,
    *,
    metadata_format: str = "pt",
    shard_bytes: int | None = DEFAULT_SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or shards and their index when it would be larger than `shard_bytes` (None: never).

    shapes: stored shapes by name. dtype: float32, float16 or bfloat16, of every tensor.
    Raises CheckpointError, naming the tensor, when a number is too large for float16.
    """
    stored = STORED_NAMES[dtype]
    shards = _split(shapes, STORED_DTYPES[stored].itemsize, shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, start=1):
        many = len(shards) > 1
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        declared = {name: (stored, shapes[name]) for name in names}
        with SafetensorsWriter(folder / file_name, declared, {"format": metadata_format}) as writer:
            for name in names:
                for rows in produce(name):
                    writer.write(_to_stored(rows, stored, name))
        weight_map |= dict.fromkeys(names, file_name)
        total += sum(_size(shapes[name]) for name in names) * STORED_DTYPES[stored].itemsize
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def write_config(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Write `config.json` in the flat form, with the dtype of the weights."""
    write_json(folder / "config.json", {**config.to_dict(), "torch_dtype": dtype})


def copy_processor_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, preprocessor and generation files, those that are there."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, data: object, indent: int | None = 2) -> None:
    """Write one JSON file of a checkpoint folder."""
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_stored(rows: npt.NDArray[Any], stored: str, name: str) -> npt.NDArray[Any]:
    if stored == "BF16":
        return rows if rows.dtype == np.uint16 else bfloat16_bits(rows)
    if stored != "F16":
        return rows.astype(STORED_DTYPES[stored], copy=False)
    with np.errstate(over="ignore"):  # told by the error below
        half = rows.astype(STORED_DTYPES[stored], copy=False)
    if (np.isinf(half) & np.isfinite(rows)).any():
        largest = float(np.abs(rows[np.isfinite(rows)]).max())
        raise CheckpointError(f"{name} has numbers up to {largest:.4g}, too large for float16; save it as bfloat16")
    return half


def _split(shapes: Mapping[str, tuple[int, ...]], itemsize: int, shard_bytes: int | None) -> list[list[str]]:
    """Group names in order, each group within the limit unless one tensor alone is over it."""
    if shard_bytes is None:
        return [list(shapes)]
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        nbytes = _size(shape) * itemsize
        if shards[-1] and nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= nbytes
    return shards


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
