"""Reading and writing safetensors files a piece at a time, with bounded memory. NumPy only.

The safetensors library maps a whole file or builds it whole in memory; pages of a map count as resident memory, and a
5 GB shard does not fit beside the model on a laptop. The format is a JSON header and raw bytes, so qvl reads and writes
it itself: never more than one block of one tensor is held. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError

# Stored name -> what NumPy reads. NumPy has no bfloat16; its bits are read as uint16.
STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
_MAX_HEADER = 100 * 1024 * 1024  # the format's own limit
# Where the data begins. The format asks for 8; weights that are used where the file is mapped like a cache line.
_HEADER_ALIGN = 64


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. `offset` counts from the start of the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open file: its tensors and metadata. Use as a context manager.

    Raises CheckpointError, naming the file, when it is missing, cut short or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from None
        try:
            self.metadata, self.tensors = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_header(self) -> tuple[dict[str, str], dict[str, StoredTensor]]:
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER or 8 + length > size:
            raise CheckpointError(f"{self.path}: not a safetensors file, or cut short in its header")
        try:
            header = json.loads(self._file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {name: _stored(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: its safetensors header is damaged ({error})") from None
        end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=8 + length)
        if end > size:
            raise CheckpointError(f"{self.path}: truncated, {size} bytes of {end}; get the file again")
        return metadata, tensors

    def rows(self, name: str, rows_at_once: int, held: slice = slice(None)) -> Iterator[npt.NDArray[Any]]:
        """Yield a tensor as [rows, everything else] blocks of at most `rows_at_once` rows, as stored.

        held: read only these rows.
        bfloat16 comes as uint16 bits. The block is reused: copy it before asking for the next one. Several threads may
        read different tensors at once.
        """
        tensor = self.tensors[name]
        dtype = STORED_DTYPES[tensor.dtype]
        begin, end, _ = held.indices(tensor.shape[0] if tensor.shape else 1)
        width = int(np.prod(tensor.shape[1:], dtype=np.int64))
        buffer = np.empty((min(rows_at_once, max(end - begin, 1)), width), dtype)
        for first in range(begin, end, rows_at_once):
            block = buffer[: min(rows_at_once, end - first)]
            self._fill(block, tensor.offset + first * width * dtype.itemsize, name)
            yield block

    def _fill(self, block: npt.NDArray[Any], offset: int, name: str) -> None:
        view = block.reshape(-1).view(np.uint8)
        done = 0
        with self._lock:  # one position in the file for all threads
            self._file.seek(offset)
            while done < len(view):
                got = self._file.readinto(view[done:].data)
                if not got:
                    raise CheckpointError(f"{self.path}: ended in the middle of {name}")
                done += got


def _stored(entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    if entry["dtype"] not in STORED_DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not one qvl reads")
    expected = int(np.prod(shape, dtype=np.int64)) * STORED_DTYPES[entry["dtype"]].itemsize
    if end - begin != expected or begin < 0:
        raise ValueError(f"shape {list(shape)} does not take {end - begin} bytes")
    return StoredTensor(entry["dtype"], shape, data_start + begin, expected)


class SafetensorsWriter:
    """Writes one file in the order declared: shapes first, then the data of each tensor, in pieces if need be.

    The file appears under its name only when it is whole; an error leaves nothing behind.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        """`tensors`: name -> (stored dtype such as "BF16", shape)."""
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._missing = 0
        self._places: dict[str, tuple[int, int]] = {}  # offset behind the header, and bytes
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        for name, (dtype, shape) in tensors.items():
            nbytes = int(np.prod(shape, dtype=np.int64)) * STORED_DTYPES[dtype].itemsize
            offsets = [self._missing, self._missing + nbytes]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
            self._places[name] = (self._missing, nbytes)
            self._missing += nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _HEADER_ALIGN)
        self._start = 8 + len(text)
        self._file = self._partial.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, data: npt.NDArray[Any]) -> None:
        """Append the next tensor, or the next rows of it. bfloat16 is given as uint16 bits."""
        contiguous = np.ascontiguousarray(data)
        self._file.write(contiguous.reshape(-1).view(np.uint8).data)
        self._missing -= contiguous.nbytes

    def put(self, name: str, data: npt.NDArray[Any]) -> None:
        """Write a whole tensor to its place, whatever was written before; not together with `write`."""
        offset, nbytes = self._places.pop(name)
        if data.nbytes != nbytes:
            raise ValueError(f"{self.path}: {name} was declared with {nbytes} bytes, not {data.nbytes}")
        self._file.seek(self._start + offset)
        self.write(data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._missing:
                raise ValueError(f"{self.path}: {self._missing} bytes of the declared tensors were not written")
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self.path)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest even, as uint16 bits. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, quiet, rounded).astype(np.uint16)


def bfloat16_to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Widen bfloat16 bits to float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
