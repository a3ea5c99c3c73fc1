"""What the engine's process and its workers say to each other. Arrays travel as NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.model.config import ModelConfig

# Where a worker finds the engine's process, and which of the workers it is.
ADDRESS, KEY, RANK, SIZE, DEVICE, PARENT = (
    f"_QVL_SPLIT_{name}" for name in ("ADDRESS", "KEY", "RANK", "SIZE", "DEVICE", "PARENT")
)


@dataclass(frozen=True)
class Load:
    """Read the weights, and those of adapters: folders and how much of each. Answered with None, after Progress."""

    folder: str
    config: ModelConfig
    dtype: str
    attention: Any
    layout: Any
    adapters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Encode:
    """Run the vision tower. Answered with the features [tokens, hidden_size], bfloat16 as its bits."""

    patches: npt.NDArray[np.float32]
    grids: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CacheState:
    """A cache as it is to be before a call: made when it is new, with what is behind `tokens` forgotten."""

    number: int
    capacity: int
    dtype: str
    tokens: int


@dataclass(frozen=True, eq=False)
class Forward:
    """Run the model on what ModelInputs has. caches: None without any. Answered with logits float32 [K, vocab_size].

    dropped: numbers of caches that nobody needs any more.
    """

    inputs: dict[str, npt.NDArray[Any] | None]
    lengths: tuple[int, ...]
    caches: Sequence[CacheState] | None
    dropped: Sequence[int]


@dataclass(frozen=True)
class Fill:
    """Put so many tokens of noise into a cache. Answered with None."""

    cache: CacheState
    tokens: int
    dtype: str


@dataclass(frozen=True)
class FreeMemory:
    """Answered by each with the bytes that are free on its device. dropped: as of Forward."""

    dropped: Sequence[int] = ()


@dataclass(frozen=True)
class PeakMemory:
    """Answered by each with the most bytes that it has taken: of its device on a GPU, else as a process."""


Call = Load | Encode | Forward | Fill | FreeMemory | PeakMemory
# What each worker has an answer of its own to.
OF_EACH = (FreeMemory, PeakMemory)


@dataclass(frozen=True)
class Progress:
    """Bytes of weights read, and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Failure:
    """foreseen: an error of ours, whose message is for the user."""

    message: str
    exit_code: int
    foreseen: bool


@dataclass(frozen=True, eq=False)
class Reply:
    """value: None from all workers but the first, where it would be the same."""

    value: Any = None
