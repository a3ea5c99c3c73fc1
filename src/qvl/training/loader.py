"""Batches in the order of the plan, read ahead by threads (decoding pictures and clips releases the interpreter)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qvl.ahead import in_order
from qvl.model.config import ModelConfig
from qvl.processing.prompt import Example
from qvl.training.batch import Batch, collate
from qvl.training.plan import Micro, Plan


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Subset:
    """Some examples of a source."""

    def __init__(self, source: Source, positions: npt.NDArray[np.int64]) -> None:
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.positions[index])]


class Loader:
    """What the Trainer iterates over: every micro-batch of one rank, from `start_step` to the last update."""

    def __init__(self, plan: Plan, source: Source, config: ModelConfig, *, rank: int, steps: int, workers: int) -> None:
        self.plan, self.source, self.config = plan, source, config
        self.rank, self.steps, self.workers = rank, steps, workers
        self.start_step = 0

    def __len__(self) -> int:
        """Micro-batches of the whole run, also when it starts in the middle: the Trainer counts updates by it."""
        return self.steps * self.plan.accumulation

    def __iter__(self) -> Iterator[Batch]:
        micros = (turn[self.rank] for step in range(self.start_step, self.steps) for turn in self.plan.update(step))
        return in_order(self._batch, micros, self.workers)

    def _batch(self, micro: Micro) -> Batch:
        # The Trainer divides each micro-batch's loss by the accumulation and averages over ranks. Multiplied by both,
        # the update's loss is the mean over all its supervised tokens, however they are spread.
        normaliser = micro.supervised / (self.plan.accumulation * self.plan.ranks)
        return collate([self.source[index] for index in micro.samples], self.config, normaliser)
