"""A quantised checkpoint folder: written tensor by tensor, mapped when it is read. docs/quantization.md has the names.

The arrays of a matrix M.weight are M.weight.data, .scales and .zeros; all else is float32 under its own name, as
Hugging Face lays it out. The format allows no gaps, so tensors whose size is a multiple of 64 bytes come first in a
file: those begin at such a multiple, the others at one of their own size's largest power of two.
"""

from __future__ import annotations

import math
import mmap
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError
from qvl.model.checkpoint import Layout, find_shards
from qvl.model.checkpoint_writer import DEFAULT_SHARD_BYTES, copy_processor_files, write_json
from qvl.model.config import ModelConfig
from qvl.model.packing import Source
from qvl.model.quantization import Quantization, Scheme, matrix_shapes, stored_quantization
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, SafetensorsWriter, StoredTensor
from qvl.model.shapes import parameter_shapes
from qvl.model.unfinished import remove_left_over, unfinished
from qvl.ops.packing import PackedMatrix

Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]

FORMAT = "qvl"  # in a file's metadata, where others have "pt"
_ALIGN = 64
_MARGIN_BYTES = 1024 * 1024  # headers, index, and what a file system rounds up
_STORED = {np.dtype(np.int8): "I8", np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}


@dataclass(frozen=True)
class Kept:
    """One parameter in the files: the stored dtype and shape of each of its tensors. scheme: None: not quantised."""

    name: str
    scheme: Scheme | None
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def nbytes(self) -> int:
        return sum(_nbytes(*tensor) for tensor in self.tensors.values())


def kept_parameters(config: ModelConfig, quantization: Quantization) -> list[Kept]:
    """Every parameter as it is stored, in the order of the model."""
    matrices = matrix_shapes(config)
    kept = []
    for name, shape in parameter_shapes(config).items():
        scheme = quantization.scheme_of(name) if name in matrices else None
        if scheme is None:
            kept.append(Kept(name, None, {name: ("F32", shape)}))
            continue
        arrays = scheme.packing().shapes(*matrices[name])
        tensors = {
            f"{name}.{key}": ("BF16" if scheme.kind == "bf16" else _STORED[np.dtype(dtype)], size)
            for key, (size, dtype) in arrays.items()
        }
        kept.append(Kept(name, scheme, tensors))
    return kept


def quantise_folder(
    source: Path,
    out: Path,
    quantization: Quantization,
    *,
    layout: Layout | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
) -> int:
    """Write a checkpoint's weights quantised, with its other files; returns the bytes of the weights.

    The folder appears when it is complete. force: it may take the place of one that this has written before.
    on_progress: called with (bytes read, bytes in all). Raises CheckpointError.
    """
    out = Path(out)
    _check_free(out, source, force)
    config = ModelConfig.from_folder(source)
    kept = kept_parameters(config, quantization)
    nbytes = sum(parameter.nbytes for parameter in kept)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(out)
        free = shutil.disk_usage(out.parent).free
        if nbytes + _MARGIN_BYTES > free:
            raise CheckpointError(f"{out.parent}: the result takes {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
        folder = ExitStack()
        partial = folder.enter_context(unfinished(out))
    except OSError as error:
        raise CheckpointError(f"{out.parent}: cannot be written ({error.strerror})") from None
    with folder:
        new = partial / "new"
        new.mkdir()
        with Source(source, config, layout) as weights:
            _write(new, weights, kept, on_progress)
        write_json(new / "config.json", {**config.to_dict(), "quantization_config": quantization.to_dict()})
        copy_processor_files(source, new)
        if force and out.exists():
            out.rename(partial / "old")
        new.rename(out)
    return nbytes


def _check_free(out: Path, source: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise CheckpointError(f"{out}: is already there; choose another folder, or --force replaces it")
    if stored_quantization(out) is None or out.resolve() == source.resolve():
        raise CheckpointError(f"{out}: is no folder that qvl quantize wrote, so --force does not replace it")


def _write(folder: Path, weights: Source, kept: list[Kept], on_progress: Progress | None) -> None:
    shards = _split(kept)
    total, done = sum(weights.nbytes(parameter.name) for parameter in kept), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        many = len(shards) > 1
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        declared = _in_file_order({name: tensor for one in shard for name, tensor in one.tensors.items()})
        with SafetensorsWriter(folder / file_name, declared, {"format": FORMAT}) as writer:
            for parameter in shard:
                for name, array in _tensors(weights, parameter):
                    writer.put(name, array)
                done += weights.nbytes(parameter.name)
                if on_progress:
                    on_progress(done, total)
        weight_map |= dict.fromkeys(declared, file_name)
    if len(shards) > 1:
        size = sum(parameter.nbytes for parameter in kept)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def _tensors(weights: Source, parameter: Kept) -> Iterator[tuple[str, Array]]:
    if parameter.scheme is None:
        yield parameter.name, weights.floats(parameter.name)
        return
    matrix = weights.matrix(parameter.name, parameter.scheme.packing())
    for key in parameter.scheme.arrays:
        yield f"{parameter.name}.{key}", getattr(matrix, key)


def _in_file_order(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    def alignment(name: str) -> int:
        return math.gcd(_nbytes(*tensors[name]), _ALIGN)

    return {name: tensors[name] for name in sorted(tensors, key=alignment, reverse=True)}


def _split(kept: list[Kept]) -> list[list[Kept]]:
    """In order, each file within the usual limit unless one parameter alone is over it."""
    shards: list[list[Kept]] = [[]]
    room = DEFAULT_SHARD_BYTES
    for parameter in kept:
        if shards[-1] and parameter.nbytes > room:
            shards.append([])
            room = DEFAULT_SHARD_BYTES
        shards[-1].append(parameter)
        room -= parameter.nbytes
    return shards


def _nbytes(stored: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * STORED_DTYPES[stored].itemsize


class Mapped:
    """The tensors of a quantised folder where the files are mapped: read-only, shared with whoever maps them too.

    Raises CheckpointError for what is missing, left over, misshapen or cut short.
    """

    def __init__(self, folder: Path, config: ModelConfig, quantization: Quantization) -> None:
        self.kept = {parameter.name: parameter for parameter in kept_parameters(config, quantization)}
        self._sizes = matrix_shapes(config)
        self._arrays: dict[str, Array] = {}
        wanted = {name: tensor for one in self.kept.values() for name, tensor in one.tensors.items()}
        for path in find_shards(folder):
            with SafetensorsFile(path) as file:
                if file.metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{path}: config.json says it is quantised, the file was not written by qvl")
                stored = file.tensors
            for name, tensor in stored.items():
                if name in self._arrays or name not in wanted:
                    raise CheckpointError(f"{path}: tensor {name} belongs to no part of this model")
                if (tensor.dtype, tensor.shape) != wanted[name]:
                    dtype, shape = wanted[name]
                    raise CheckpointError(
                        f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                        f"config.json asks for {dtype} {list(shape)}"
                    )
            self._arrays |= _mapped(path, stored)
        missing = sorted(wanted.keys() - self._arrays.keys())
        if missing:
            raise CheckpointError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")

    def matrix(self, name: str) -> PackedMatrix:
        """A quantised parameter. Nothing of it is read yet."""
        scheme = self.kept[name].scheme
        assert scheme is not None
        n, k = self._sizes[name]
        return PackedMatrix(scheme.packing(), n, k, **{key: self._arrays[f"{name}.{key}"] for key in scheme.arrays})

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """A parameter that is not quantised, in memory of its own."""
        return np.array(self._arrays[name])


def _mapped(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Array]:
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        memory.madvise(mmap.MADV_WILLNEED)  # read ahead, while the rest of the model is made
    return {
        name: np.frombuffer(memory, STORED_DTYPES[t.dtype], math.prod(t.shape), t.offset).reshape(t.shape)
        for name, t in tensors.items()
    }
