"""One op at one size, ready to be called, and the sizes of a model that cases are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle

from qvl.model.config import ModelConfig

Arithmetic = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Sizes:
    """tokens: of a prompt. patches: of a picture. context: tokens in the cache when one more is decoded.

    cold_bytes: what the weights of a case have to take together, so that no cache of the CPU holds them.
    """

    config: ModelConfig
    tokens: int
    patches: int
    context: int
    cold_bytes: int


@dataclass(frozen=True, eq=False)
class OpCase:
    """op: as the library has it. variant: of its weights or cache. rows: of the input. sizes: for people.

    calls: the same work on weights of their own, made in turn. bytes: read and written at least, each once.
    operations: multiplications and additions, where those of a matrix product are what takes the time; else 0.
    arithmetic: whose peak they are held against.
    """

    op: str
    variant: str
    rows: int
    sizes: str
    calls: Sequence[Callable[[], object]]
    bytes: int
    operations: int = 0
    arithmetic: Arithmetic = "float32"


def copies(sizes: Sizes, nbytes: int) -> int:
    """How many weights of that size it takes for each call to find its own in memory and not in a cache."""
    return max(1, min(256, -(-sizes.cold_bytes // max(1, nbytes))))


def normal(*shape: int, seed: int = 0) -> paddle.Tensor:
    """Normal numbers, float32, on the CPU."""
    numbers = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    return paddle.to_tensor(numbers, place=paddle.CPUPlace())
