"""Caches of sequences for the tests of rotary_store and of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import rounded
from tests.gpu.kernels.structs_rotary import CacheSequence

Array = npt.NDArray[Any]


def quantized(x: Array) -> tuple[Array, Array]:
    """x [..., dim] as int8 and a scale for each row, as the op on a CPU makes them."""
    x = x.astype(np.float32)
    scales = np.abs(x).max(axis=-1) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
    return np.rint(x * inverse[..., None]).astype(np.int8), scales


@dataclass
class Cache:
    """What one sequence keeps, [capacity, kv_heads, dim], and scales [capacity, kv_heads] for int8."""

    k: Any
    v: Any
    k_scale: Any
    v_scale: Any

    def loaded(self, r: Callable[[Array], Array], wide: type) -> tuple[Array, Array]:
        """Keys and values in `wide`, with `r` after every step."""
        keys, values = r(self.k.numpy().astype(wide)), r(self.v.numpy().astype(wide))
        if self.k_scale is None:
            return keys, values
        scales = (r(x.numpy().astype(wide))[..., None] for x in (self.k_scale, self.v_scale))
        return r(keys * next(scales)), r(values * next(scales))

    def sequence(self, tokens: int) -> CacheSequence:
        scales = (None, None) if self.k_scale is None else (self.k_scale.pointer, self.v_scale.pointer)
        return CacheSequence(self.k.pointer, self.v.pointer, *scales, tokens)


def empty_cache(device: Device, storage: str, shape: tuple[int, int, int]) -> Cache:
    narrow = storage == "int8"
    scales = [device.empty(shape[:2], "float32") if narrow else None for _ in range(2)]
    return Cache(device.empty(shape, storage), device.empty(shape, storage), *scales)


def filled_cache(device: Device, storage: str, k: Array, v: Array, spare: int) -> Cache:
    """Keys and values [n, kv_heads, dim], and `spare` rows behind them that are not to be read: NaN, or NaN scales."""
    shape = (k.shape[0] + spare, *k.shape[1:])
    whole = [np.full(shape, np.nan, dtype=np.float32) for _ in range(2)]
    for rows, given in zip(whole, (k, v), strict=True):
        rows[: len(given)] = given
    if storage != "int8":
        return Cache(*(device.floats(rounded(rows, storage), storage) for rows in whole), None, None)
    codes, scales = zip(*(quantized(np.nan_to_num(rows)) for rows in whole), strict=True)
    for code, scale in zip(codes, scales, strict=True):
        code[len(k) :], scale[len(k) :] = 99, np.nan
    return Cache(*map(device.put, codes), *map(device.put, scales))


def sequences_of(caches: Sequence[Cache], tokens: Sequence[int]) -> Any:
    """The host array, to be kept alive by the caller."""
    return (CacheSequence * len(caches))(*(cache.sequence(n) for cache, n in zip(caches, tokens, strict=True)))
