"""Quantising a checkpoint's matrices one by one, straight from its files; those of AWQ and GPTQ are laid out anew.

At no time is more held than the result and a block of rows; of a matrix in Paddle's layout, the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError
from qvl.model.checkpoint import Entry, Layout, find_pickle, list_tensors
from qvl.model.config import ModelConfig
from qvl.model.foreign import Foreign, foreign_of, is_projection
from qvl.model.foreign_packing import check_entries, packed, zero_biases
from qvl.model.quantization import EMBEDDING, refuse_twice
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, bfloat16_to_float32
from qvl.model.shapes import parameter_shapes
from qvl.ops.linear import pack
from qvl.ops.packing import PANEL, PackedMatrix, Packing

_BLOCK_BYTES = 8 * 1024 * 1024
_FLOATS = ("F32", "F16", "BF16", "F64")

Rows = npt.NDArray[Any]


class Source:
    """The weights of a checkpoint folder, matrix by matrix. Use as a context manager.

    Raises CheckpointError for weights that are pickled or that `qvl quantize` wrote, and for what is missing, left over
    or misshapen.
    """

    def __init__(self, folder: Path, config: ModelConfig, layout: Layout | None = None) -> None:
        refuse_twice(folder)
        pickled = find_pickle(folder)
        if pickled is not None:
            raise CheckpointError(f"{pickled}: pickled weights cannot be quantised; convert them to safetensors first")
        self.entries = list_tensors(folder, layout)
        self.foreign = foreign_of(folder)
        self._shapes = parameter_shapes(config)
        _check(self.entries, config, folder, self.foreign)
        self._files: dict[Path, SafetensorsFile] = {}
        self._open = ExitStack()

    def __enter__(self) -> Source:
        for path in {entry.path for entry in self.entries.values()}:
            self._files[path] = self._open.enter_context(SafetensorsFile(path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def nbytes(self, name: str) -> int:
        """Of a parameter, as it is stored."""
        names = [name] if self.foreign is None else self.foreign.tensor_names([name])
        stored = [self.entries[each] for each in names]
        return sum(math.prod(entry.shape) * STORED_DTYPES[entry.dtype].itemsize for entry in stored)

    def matrix(self, name: str, how: Packing) -> PackedMatrix:
        """One parameter [n, k] packed. how: where AWQ or GPTQ has quantised it, what `Quantization.of_foreign` says.

        Raises CheckpointError for numbers of theirs that there is no place for.
        """
        if self.foreign is not None and is_projection(name):
            assert (how.kind, how.group) == (self.foreign.kind, self.foreign.packed_group)
            n, k = self._shapes[name]
            return packed(name, (n, k), self.foreign, self._stored)
        entry = self.entries[name]
        n, k = entry.shape[::-1] if self._turned(name) else entry.shape
        arrays = {key: np.empty(shape, dtype) for key, (shape, dtype) in how.shapes(n, k).items()}
        panel = 0
        for block in self._blocks(name, k):
            part = pack(block, how)
            end = panel + part.data.shape[0]
            for key, array in arrays.items():
                array[panel:end] = getattr(part, key)
            panel = end
        return PackedMatrix(how, n, k, **arrays)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """A parameter whole, float32 in the Hugging Face layout."""
        entry = self.entries[name]
        whole = next(self._files[entry.path].rows(entry.name, max(1, entry.shape[0])))
        values = _widened(whole, entry.dtype).reshape(entry.shape)
        return values.T if len(entry.shape) == 2 and self._turned(name) else values

    def _stored(self, tensor: str) -> Rows | None:
        """A tensor whole, as it is in the file."""
        entry = self.entries.get(tensor)
        return None if entry is None else next(self._files[entry.path].rows(entry.name, max(1, entry.shape[0])))

    def _turned(self, name: str) -> bool:
        """Whether the file has a matrix as its transpose, which an embedding never is."""
        return self.entries[name].layout == "paddle" and name != EMBEDDING

    def _blocks(self, name: str, k: int) -> Iterator[Rows]:
        """Whole panels of a matrix, but for the last: float32, or bfloat16 as its bits."""
        entry = self.entries[name]
        file, itemsize = self._files[entry.path], STORED_DTYPES[entry.dtype].itemsize
        height = max(1, _BLOCK_BYTES // (k * itemsize * PANEL)) * PANEL
        if not self._turned(name):
            for block in file.rows(entry.name, height):
                yield block if entry.dtype == "BF16" else _widened(block, entry.dtype)
            return
        whole = next(file.rows(entry.name, entry.shape[0])).T
        for start in range(0, whole.shape[0], height):
            block = whole[start : start + height]
            yield block if entry.dtype == "BF16" else _widened(block, entry.dtype)


def _widened(block: Rows, stored: str) -> Rows:
    return bfloat16_to_float32(block) if stored == "BF16" else block.astype(np.float32, copy=False)


def _check(entries: Mapping[str, Entry], config: ModelConfig, folder: Path, foreign: Foreign | None) -> None:
    """Raise CheckpointError unless the files have every parameter, of its shape, and nothing else."""
    shapes = parameter_shapes(config)
    wanted, used = set(shapes), set(shapes)
    if foreign is not None:
        wanted = set(foreign.tensor_names(shapes))
        used = wanted | check_entries(entries, shapes, foreign)
        shapes = {name: shape for name, shape in shapes.items() if not is_projection(name)}
    extra = set(entries.keys() - used)
    if config.tie_word_embeddings:
        extra -= {"lm_head.weight"}  # some tools store the tied head as well; it is the embedding
    if foreign is not None:
        extra -= zero_biases(entries, extra)
    for names, what in ((wanted - entries.keys(), "is missing"), (extra, "belongs to no part of this model")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"{folder}: tensor {min(names)} {what}{more}")
    for name, shape in shapes.items():
        entry = entries[name]
        turned = entry.layout == "paddle" and len(shape) == 2 and name != EMBEDDING
        expected = shape[::-1] if turned else shape
        if entry.shape != expected:
            raise CheckpointError(
                f"{entry.path}: {name} has shape {list(entry.shape)}, config.json asks for {list(expected)}"
            )
        if entry.dtype not in _FLOATS:
            raise CheckpointError(f"{entry.path}: {name} is stored as {entry.dtype}; qvl reads floating point weights")
