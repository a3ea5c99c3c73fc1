"""What this machine's memory and arithmetic can do, measured: what an op's share is a share of. Imports Paddle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from qvl.bench.opcases.case import Arithmetic, normal
from qvl.ops import linear, native
from qvl.ops.packing import Packing

_TRIES = 7
# Two measurements of one machine that are further apart are not of one state of it.
_APART = 1.3


@dataclass(frozen=True)
class Peaks:
    """Bytes a second read by a product of a large matrix and a vector, and moved (read and written) by a copy; floating
    or integer operations a second of large matrix products: Paddle's in float32, the native ops' with bfloat16 and
    int8 weights. None where the native ops were not built. Each the best of several tries.
    """

    read: float
    copy: float
    float32: float
    bfloat16: float | None
    int8: float | None

    @property
    def bandwidth(self) -> float:
        return max(self.read, self.copy)

    def arithmetic(self, kind: Arithmetic) -> float:
        """A kind that has no faster unit here is worth its float32."""
        found: Mapping[str, float | None] = {"bfloat16": self.bfloat16, "int8": self.int8}
        return max(self.float32, found.get(kind) or 0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "unit": "bytes and operations a second"}


def best(one: Peaks, other: Peaks) -> Peaks:
    """The larger of each: what disturbs a machine only ever makes it slower."""
    ours, theirs = asdict(one), asdict(other)
    return Peaks(**{name: max((ours[name], theirs[name]), key=lambda rate: rate or 0.0) for name in ours})


def steady(one: Peaks, other: Peaks) -> bool:
    """Whether two measurements agree, so that what was timed between them can be held against both."""
    pairs = ((one.bandwidth, other.bandwidth), (one.float32, other.float32))
    return all(max(pair) <= _APART * min(pair) for pair in pairs)


def measure(threads: int, nbytes: int, size: int) -> Peaks:
    """nbytes: of the memory gone over, more than any cache holds. size: of the square matrices, and their rows."""
    bf16, int8 = (_packed(size, kind) for kind in (Packing("bf16"), Packing("int8")))
    return Peaks(_read(nbytes), _copy(nbytes, threads), _float32(size), bf16, int8)


def _read(nbytes: int) -> float:
    columns = 4096
    matrix = paddle.ones([max(1, nbytes // (4 * columns)), columns], "float32").to(paddle.CPUPlace())
    vector = normal(columns)
    return 4 * int(matrix.size) / _best(lambda: paddle.matmul(matrix, vector))


def _copy(nbytes: int, threads: int) -> float:
    source = np.ones(nbytes // 8, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))

    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets go of the interpreter while it copies.
        return 2 * source.nbytes / _best(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))


def _float32(size: int) -> float:
    a, b = normal(size, size), normal(size, size, seed=1)
    return 2 * size**3 / _best(lambda: paddle.matmul(a, b))


def _packed(size: int, how: Packing) -> float | None:
    with native.using("auto") as module:
        if module is None:
            return None
        x, weight = normal(size, size), linear.PackedLinear(linear.pack(normal(size, size, seed=1).numpy(), how))
        return 2 * size**3 / _best(lambda: linear.linear(x, weight))


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls: the machine's peak is what it can do undisturbed."""
    seconds = []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
