"""Merging an adapter into its base, on disk, tensor by tensor. NumPy only.

The base is read and the result written a block of rows at a time, so the memory it takes is a block and the factors of
one layer. What the adapter does not touch is copied bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError, UsageError
from qvl.model.adapter import Adapter
from qvl.model.asking import end_answers_as
from qvl.model.checkpoint import PROCESSOR_FILES, Entry, Layout, find_pickle, list_tensors
from qvl.model.checkpoint_writer import DEFAULT_SHARD_BYTES, STORED_NAMES, copy_processor_files, write_json
from qvl.model.config import ModelConfig
from qvl.model.quantization import refuse_quantised
from qvl.model.safetensors_io import (
    STORED_DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    bfloat16_bits,
    bfloat16_to_float32,
)
from qvl.model.unfinished import remove_left_over, unfinished

Progress = Callable[[int, int], None]
Rows = npt.NDArray[Any]

_BLOCK_BYTES = 8 * 1024 * 1024
_MARGIN_BYTES = 1024 * 1024  # headers, index, and what a file system rounds up
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class _Target:
    """A tensor to be written: what it is made of, its name and shape in the Hugging Face layout, its stored dtype."""

    source: Entry
    name: str
    shape: tuple[int, ...]
    dtype: str
    module: str | None  # the adapted module, if it is the weight of one

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * STORED_DTYPES[self.dtype].itemsize


def merge_adapter(
    base_folder: Path,
    adapter_folder: Path,
    out_folder: Path,
    *,
    dtype: str | None = None,
    layout: Layout | None = None,
    on_progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write the base with the adapter in its weights as a complete Hugging Face folder.

    W + scale * B A is computed in float32 and rounded once. A base in Paddle's layout comes out in Hugging Face's.
    dtype: float32, float16 or bfloat16 of all weights; None keeps that of each. layout: of the base, where its files do
    not say it. on_progress: called with (bytes written, bytes in all). check: called with the finished folder, which
    gets its name only if that does not raise. Answers of the folder end where the adapter was taught to end them.
    Raises CheckpointError: an adapter of another base, damaged files, no room on the disk, an output that exists.
    """
    base_folder, out_folder = Path(base_folder), Path(out_folder)
    remove_left_over(out_folder)
    adapter, targets, shard_bytes = _prepare(base_folder, adapter_folder, out_folder, dtype, layout)
    with unfinished(out_folder) as partial:
        _write_weights(partial, targets, adapter, shard_bytes, on_progress)
        _write_config(base_folder, partial, dtype)
        copy_processor_files(base_folder, partial)
        end_answers_as(Path(adapter_folder), partial, ModelConfig.from_folder(base_folder).eos_token_id)
        partial.chmod(0o755)  # others are kept out so far, which a finished checkpoint need not
        if check is not None:
            check(partial)
        partial.rename(out_folder)


def check_merge(
    base_folder: Path,
    adapter_folder: Path,
    out_folder: Path,
    dtype: str | None = None,
    layout: Layout | None = None,
) -> None:
    """Raise what `merge_adapter` would raise before it begins to write; nothing large is read."""
    remove_left_over(Path(out_folder))
    _prepare(Path(base_folder), adapter_folder, Path(out_folder), dtype, layout)


def _prepare(
    base_folder: Path, adapter_folder: Path, out_folder: Path, dtype: str | None, layout: Layout | None
) -> tuple[Adapter, list[_Target], int]:
    """The adapter, what is to be written, and at how many bytes a file is full."""
    if dtype is not None and dtype not in STORED_NAMES:
        raise UsageError(f"dtype {dtype!r}: one of {', '.join(STORED_NAMES)} was expected")
    if out_folder.exists():
        raise CheckpointError(f"{out_folder}: is already there; choose another folder or remove it first")
    adapter = Adapter.open(adapter_folder)
    targets, shard_bytes = _plan(base_folder, adapter, dtype, layout)
    try:
        out_folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out_folder.parent}: cannot be made ({error.strerror})") from None
    _check_room(out_folder.parent, base_folder, targets)
    return adapter, targets, shard_bytes


def stored_dtypes(folder: Path) -> frozenset[str]:
    """Names such as "bfloat16" of the dtypes that the weights of a folder are stored in."""
    names = {stored: name for name, stored in STORED_NAMES.items()} | {"F64": "float64"}
    return frozenset(names.get(entry.dtype, entry.dtype) for entry in list_tensors(folder).values())


def _plan(folder: Path, adapter: Adapter, dtype: str | None, layout: Layout | None) -> tuple[list[_Target], int]:
    """What is to be written, in order, and at how many bytes a file is full."""
    config = ModelConfig.from_folder(folder)
    refuse_quantised(folder, "merging")
    pickled = find_pickle(folder)
    if pickled is not None:
        raise CheckpointError(f"{pickled}: the base is a pickle; convert it to safetensors first")
    entries = list_tensors(folder, layout)
    targets = []
    linears: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        if entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise CheckpointError(f"{entry.path}: {name} is stored as {entry.dtype}; an adapter needs floating point")
        is_linear = len(entry.shape) == 2 and name != _EMBEDDING
        turned = is_linear and entry.layout == "paddle"
        shape = entry.shape[::-1] if turned else entry.shape
        module = name.removesuffix(".weight")
        if is_linear and not (name == "lm_head.weight" and config.tie_word_embeddings):
            linears[module] = (shape[0], shape[1])
        stored = STORED_NAMES[dtype] if dtype else entry.dtype
        adapted = module if is_linear and module in adapter.modules else None
        # Whoever reads a base in its own spelling of the names reads the result too.
        targets.append(_Target(entry, entry.name if entry.layout == "hf" else name, shape, stored, adapted))
    adapter.check(linears)
    return targets, _shard_bytes(entries)


def _shard_bytes(entries: Mapping[str, Entry]) -> int:
    """The base's own limit, as far as its files show it."""
    sizes: dict[Path, int] = {}
    for entry in entries.values():
        nbytes = int(np.prod(entry.shape, dtype=np.int64)) * STORED_DTYPES[entry.dtype].itemsize
        sizes[entry.path] = sizes.get(entry.path, 0) + nbytes
    return max(sizes.values()) if len(sizes) > 1 else DEFAULT_SHARD_BYTES


def _check_room(place: Path, base: Path, targets: list[_Target]) -> None:
    files = sum((base / name).stat().st_size for name in PROCESSOR_FILES if (base / name).is_file())
    needed = sum(target.nbytes for target in targets) + files + _MARGIN_BYTES
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"{place}: the merged model takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free there"
        )


def _write_weights(
    folder: Path, targets: list[_Target], adapter: Adapter, shard_bytes: int, on_progress: Progress | None
) -> None:
    shards = _split(targets, shard_bytes)
    total, done = sum(target.nbytes for target in targets), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        many = len(shards) > 1
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        declared = {target.name: (target.dtype, target.shape) for target in shard}
        with SafetensorsWriter(folder / file_name, declared, {"format": "pt"}) as writer:
            for target in shard:
                for rows in _rows(target, adapter):
                    writer.write(rows)
                weight_map[target.name] = file_name
                done += target.nbytes
                if on_progress:
                    on_progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def _split(targets: list[_Target], shard_bytes: int) -> list[list[_Target]]:
    """In order, each file within the limit unless one tensor alone is over it."""
    shards: list[list[_Target]] = [[]]
    room = shard_bytes
    for target in targets:
        if shards[-1] and target.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(target)
        room -= target.nbytes
    return shards


def _rows(target: _Target, adapter: Adapter) -> Iterator[Rows]:
    """A tensor as it is to be stored, some rows at a time."""
    factors = None
    if target.module is not None:
        a, b = adapter.factors(target.module)
        factors = a, b * np.float32(adapter.scale(target.module))
    start = 0
    for block in _source_rows(target):
        if factors is None and target.dtype == target.source.dtype:
            yield block
            continue
        values = bfloat16_to_float32(block) if target.source.dtype == "BF16" else block.astype(np.float32)
        if factors is not None:
            a, b = factors
            values += b[start : start + len(values)] @ a
        start += len(values)
        yield _stored(values, target)


def _source_rows(target: _Target) -> Iterator[Rows]:
    """Rows of the tensor in the Hugging Face layout, as the base stores its numbers."""
    entry = target.source
    row_bytes = max(1, target.nbytes // max(1, entry.shape[0] if entry.shape else 1))
    with SafetensorsFile(entry.path) as file:
        if target.shape == entry.shape and not _is_turned(target):
            yield from file.rows(entry.name, max(1, _BLOCK_BYTES // row_bytes))
            return
        # Its rows are the columns of the file: the one case that takes a whole tensor.
        whole = next(file.rows(entry.name, entry.shape[0])).T
        height = max(1, _BLOCK_BYTES * whole.shape[0] // max(1, target.nbytes))
        for start in range(0, whole.shape[0], height):
            yield whole[start : start + height]


def _is_turned(target: _Target) -> bool:
    return target.source.layout == "paddle" and len(target.shape) == 2 and target.name != _EMBEDDING


def _stored(values: npt.NDArray[np.float32], target: _Target) -> Rows:
    if target.dtype == "BF16":
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        rounded = values.astype(STORED_DTYPES[target.dtype])
    if target.dtype == "F16" and not np.isfinite(rounded).all():
        raise CheckpointError(f"{target.source.path}: {target.name} does not fit in float16; merge with another dtype")
    return rounded


def _write_config(base: Path, folder: Path, dtype: str | None) -> None:
    """The base's config.json, in which nothing but the dtype can change."""
    if dtype is None:
        shutil.copyfile(base / "config.json", folder / "config.json")
        return
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    parts = [config, *(config[name] for name in ("text_config", "vision_config") if isinstance(config.get(name), dict))]
    for part in parts:
        for key in ("torch_dtype", "dtype"):
            if key in part or (part is config and key == "torch_dtype" and "dtype" not in part):
                part[key] = dtype
    write_json(folder / "config.json", config)
