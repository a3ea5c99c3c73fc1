"""The numbers of AWQ and GPTQ checkpoints in qvl's layout: codes, zero points and scales are moved, never rounded.

Both pack codes in int32, the lowest bits first, of a matrix that lies [inputs, outputs]: AWQ eight outputs to a word,
in the order 0 2 4 6 1 3 5 7; GPTQ four or eight inputs to a word. Zero points [groups, outputs] are packed along
outputs by both, in GPTQ's first format with one less. Sources: https://github.com/casper-hansen/AutoAWQ and
https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.ahead import in_order
from qvl.environment import physical_cores
from qvl.errors import CheckpointError
from qvl.model.checkpoint import Entry
from qvl.model.foreign import Foreign, is_projection, module_of
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_to_float32
from qvl.ops.packing import PANEL, PackedMatrix, Packing, lay_out

Array = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]

_BLOCK_BYTES = 8 * 1024 * 1024  # of codes, taken apart
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of each of its eight outputs
_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Tensors:
    """Those of one matrix [n, k]. zeros: uint8 [groups, n]; scales: float32 [groups, n]."""

    n: int
    k: int
    codes: Words
    zeros: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]


def check_entries(entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]], foreign: Foreign) -> set[str]:
    """Compare the tensors of quantised projections with the sizes of the model; returns the names of all that are used.

    Those that are missing are not this function's part. Raises CheckpointError for a shape or dtype that is not right.
    """
    used = set()
    for name, (n, k) in ((name, (shape[0], shape[1])) for name, shape in shapes.items() if is_projection(name)):
        wanted = foreign.shapes(n, k)
        if foreign.method == "gptq":
            wanted["g_idx"] = (k,)
        for key, shape in wanted.items():
            tensor = f"{module_of(name)}.{key}"
            used.add(tensor)
            entry = entries.get(tensor)
            if entry is None:
                continue
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.path}: {tensor} has shape {list(entry.shape)}, config.json asks for {list(shape)}"
                )
            allowed = _SCALES if key == "scales" else ("I32",)
            if entry.dtype not in allowed:
                raise CheckpointError(f"{entry.path}: {tensor} is stored as {entry.dtype}, not {' or '.join(allowed)}")
    return used


def zero_biases(entries: Mapping[str, Entry], names: Iterable[str]) -> set[str]:
    """Which of those tensors are biases of nothing but zeros, which GPTQ's tools add to linears without one."""
    found = set()
    for name in names:
        entry = entries[name]
        if is_projection(f"{name.removesuffix('.bias')}.weight") and len(entry.shape) == 1:
            with SafetensorsFile(entry.path) as file:
                if not next(file.rows(entry.name, entry.shape[0])).any():
                    found.add(name)
    return found


def packed(name: str, size: tuple[int, int], foreign: Foreign, read: Callable[[str], Array | None]) -> PackedMatrix:
    """One projection [n, k]. read: gives a tensor as it is stored (bfloat16 as uint16), or None where it is missing.

    Held at once are the result, the stored tensors and some blocks. Raises CheckpointError, naming the tensor, for zero
    points, scales or an order of inputs that qvl's layout has no place for.
    """
    module, (n, k) = module_of(name), size
    tensors = _tensors(module, n, k, foreign, read)
    how = Packing(foreign.kind, foreign.packed_group, foreign.symmetric)
    arrays = {key: np.empty(shape, dtype) for key, (shape, dtype) in how.shapes(n, k).items()}
    height = max(1, _BLOCK_BYTES // (k * PANEL)) * PANEL

    def fill(first: int) -> None:
        last = min(first + height, n)
        part = _block(tensors, foreign, how, first, last)
        panels = slice(first // PANEL, -(-last // PANEL))
        for key, array in arrays.items():
            array[panels] = getattr(part, key)

    for _ in in_order(fill, range(0, n, height), physical_cores()):
        pass
    return PackedMatrix(how, n, k, **arrays)


def _tensors(module: str, n: int, k: int, foreign: Foreign, read: Callable[[str], Array | None]) -> Tensors:
    def needed(key: str) -> Array:
        array = read(f"{module}.{key}")
        assert array is not None  # checked when the folder was opened
        return array

    order = read(f"{module}.g_idx")
    usual = np.arange(k) // (foreign.group or k)
    if order is not None and not np.array_equal(order.reshape(-1), usual):
        raise CheckpointError(
            f"{module}.g_idx: its inputs are grouped in another order (desc_act), which qvl does not read; "
            "take a checkpoint without it, or the original and --quant"
        )
    zeros = _zero_points(needed("qzeros").view(np.uint32), foreign)
    half = 1 << (foreign.bits - 1)
    if foreign.symmetric and (zeros != half).any():
        raise CheckpointError(f"{module}.qzeros: not {half} everywhere, although config.json says symmetric")
    stored = needed("scales")
    scales = bfloat16_to_float32(stored) if stored.dtype == np.uint16 else stored.astype(np.float32)
    with np.errstate(over="ignore"):
        exact = scales.astype(np.float16).astype(np.float32)
    if foreign.packed_group and not np.array_equal(exact, scales, equal_nan=True):
        raise CheckpointError(f"{module}.scales: some have no exact float16, which qvl keeps them in")
    return Tensors(n, k, needed("qweight").view(np.uint32), zeros, scales)


def _zero_points(words: Words, foreign: Foreign) -> npt.NDArray[np.uint8]:
    """uint8 [groups, n] of int32 [groups, n / numbers in a word]."""
    if foreign.less_one:
        # The tools subtract one from every number of a word by one subtraction, which may borrow from a neighbour.
        words = words + np.uint32(0x11111111 if foreign.bits == 4 else 0x01010101)
    return _along_outputs(words, foreign)


def _along_outputs(words: Words, foreign: Foreign) -> npt.NDArray[np.uint8]:
    """[rows, n / numbers in a word] to [rows, n]."""
    places = _AWQ_PLACES if foreign.method == "awq" else range(32 // foreign.bits)
    shifts = np.array([foreign.bits * place for place in places], np.uint32)
    numbers: npt.NDArray[np.uint8] = ((words[:, :, None] >> shifts) & ((1 << foreign.bits) - 1)).astype(np.uint8)
    return numbers.reshape(len(words), -1)


def _codes(tensors: Tensors, foreign: Foreign, first: int, last: int) -> npt.NDArray[np.uint8]:
    """Of outputs `first` to `last`: [last - first, k]."""
    if foreign.method == "awq":
        return _along_outputs(tensors.codes[:, first // 8 : -(-last // 8)], foreign).T
    words = np.ascontiguousarray(tensors.codes[:, first:last].T)
    pairs: npt.NDArray[np.uint8] = words.view(np.uint8)  # [outputs, bytes], inputs in order
    if foreign.bits == 8:
        return pairs
    codes = np.empty((last - first, tensors.k), np.uint8)
    codes[:, 0::2], codes[:, 1::2] = pairs & np.uint8(15), pairs >> np.uint8(4)
    return codes


def _block(tensors: Tensors, foreign: Foreign, how: Packing, first: int, last: int) -> PackedMatrix:
    codes, part = _codes(tensors, foreign, first, last), slice(first, last)
    if foreign.bits == 8:
        codes = codes ^ np.uint8(128)  # less 128, as the bits of int8
    signed = codes.view(np.int8)
    if not how.group:
        return lay_out(signed, how, tensors.scales[:, part].T)
    starts = np.arange(how.padded(tensors.k) // how.group) * how.group
    groups = np.minimum(starts // (foreign.group or tensors.k), len(tensors.scales) - 1)
    scales = tensors.scales[groups, part].T.astype(np.float16)
    return lay_out(signed, how, scales, None if how.symmetric else tensors.zeros[groups, part].T)
