"""What is timed of an op: our call, what torch does instead, and the bytes that have to move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.gpu.kernels.bench.sizes import Sizes

if TYPE_CHECKING:
    from tests.gpu.kernels.bench.side import Side

Run = Callable[[], Any]


@dataclass(frozen=True)
class Operands:
    """One set: our launch on it, the tensors that torch's functions are given, and what ours makes of the same.

    results: in the order in which torch's functions return them; empty where operands are not the same numbers.
    """

    ours: Run
    tensors: tuple[Any, ...]
    results: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Case:
    """shape: rows and the like, in words. bytes: moved at least.

    peers: functions of the tensors, timed as they are. compiled: one that torch.compile is given.
    """

    op: str
    model: str
    shape: str
    bytes: int
    make: Callable[[], Operands]
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    flops: int = 0
    compiled: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.op} {self.model} {self.shape}"


@dataclass(frozen=True)
class Rotation:
    """How many sets of operands take turns: together they are more than the second-level cache holds, up to a limit.

    What is small then comes from that cache, as it does in a step, where the op before has just written it.
    """

    cache: int  # bytes
    most: int = 24

    def sets(self, case: Case) -> int:
        return max(1, min(self.most, math.ceil(4 * self.cache / case.bytes)))


def all_cases(side: Side, sizes: Sizes) -> Iterable[Case]:
    """The most telling first, should time run out."""
    from tests.gpu.kernels.bench import cases_attention, cases_linear, cases_rows, cases_words

    for module in (cases_attention, cases_linear, cases_rows, cases_words):
        yield from module.cases(side, sizes)
