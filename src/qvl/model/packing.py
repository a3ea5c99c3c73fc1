"""Quantising a checkpoint's matrices one by one, straight from its files.

At no time is more held than the result and a block of rows; of a matrix in Paddle's layout, the whole of it.
"""

from __future__ import annotations

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
from qvl.model.quantization import EMBEDDING, refuse_quantised
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, bfloat16_to_float32
from qvl.model.shapes import parameter_shapes
from qvl.ops.linear import pack
from qvl.ops.packing import PANEL, PackedMatrix, Packing

_BLOCK_BYTES = 8 * 1024 * 1024
_FLOATS = ("F32", "F16", "BF16", "F64")

Rows = npt.NDArray[Any]


class Source:
    """The weights of a checkpoint folder, matrix by matrix. Use as a context manager.

    Raises CheckpointError for weights that are pickled or quantised, and for what is missing, left over or misshapen.
    """

    def __init__(self, folder: Path, config: ModelConfig, layout: Layout | None = None) -> None:
        refuse_quantised(folder, "quantising")
        pickled = find_pickle(folder)
        if pickled is not None:
            raise CheckpointError(f"{pickled}: pickled weights cannot be quantised; convert them to safetensors first")
        self.entries = list_tensors(folder, layout)
        _check(self.entries, config, folder)
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
        entry = self.entries[name]
        return int(np.prod(entry.shape, dtype=np.int64)) * STORED_DTYPES[entry.dtype].itemsize

    def matrix(self, name: str, how: Packing) -> PackedMatrix:
        """One parameter [n, k] packed. Checkpoints that come quantised are to be turned into ours here."""
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


def _check(entries: Mapping[str, Entry], config: ModelConfig, folder: Path) -> None:
    """Raise CheckpointError unless the files have every parameter, of its shape, and nothing else."""
    shapes = parameter_shapes(config)
    extra = entries.keys() - shapes.keys()
    if config.tie_word_embeddings:
        extra -= {"lm_head.weight"}  # some tools store the tied head as well; it is the embedding
    for names, what in ((shapes.keys() - entries.keys(), "is missing"), (extra, "belongs to no part of this model")):
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
