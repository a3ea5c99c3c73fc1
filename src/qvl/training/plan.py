"""Which samples make up each update, fixed by the data, the seed and the sizes before training starts.

Nothing random is left for later, so training that was interrupted goes on with just the samples it would have had, and
one process sees the same updates as eight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvl.errors import UsageError


@dataclass(frozen=True)
class Micro:
    """Samples that one device takes at once. supervised: tokens learnt by the whole update, of all devices."""

    samples: tuple[int, ...]
    supervised: int


class Plan:
    """All updates of a run: epoch after epoch of shuffled samples, cut into equal global batches.

    The last batch of an epoch goes on into the next one, so every update has `batch_size` samples and none is left out.
    """

    def __init__(
        self,
        tokens: npt.ArrayLike,
        supervised: npt.ArrayLike,
        *,
        batch_size: int,
        micro_batch_size: int,
        ranks: int,
        seed: int,
        balance: bool,
    ) -> None:
        """tokens, supervised: of each sample. Raises UsageError when the sizes do not divide."""
        if batch_size % (micro_batch_size * ranks):
            raise UsageError(
                f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size} on {ranks} devices"
            )
        self.batch_size, self.micro_batch_size, self.ranks = batch_size, micro_batch_size, ranks
        self.accumulation = batch_size // (micro_batch_size * ranks)
        self._tokens = np.asarray(tokens, np.int64)
        self._supervised = np.asarray(supervised, np.int64)
        if not len(self._tokens):
            raise UsageError("no sample is left to train on")
        self._seed, self._balance = seed, balance
        self._epoch: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def steps(self, epochs: float) -> int:
        """Updates that go `epochs` times through the data, at least one."""
        return max(1, round(epochs * len(self._tokens) / self.batch_size))

    def epoch_of(self, step: int) -> float:
        """How many times the data has been gone through before the update `step`, counted from 0."""
        return step * self.batch_size / len(self._tokens)

    def update(self, step: int) -> list[list[Micro]]:
        """The update `step`, counted from 0: for each accumulation, what each rank takes."""
        first = step * self.batch_size
        batch = np.asarray([self._sample(place) for place in range(first, first + self.batch_size)])
        if self._balance:
            batch = self._balanced(batch)
        total = int(self._supervised[batch].sum())
        groups = batch.reshape(self.accumulation, self.ranks, self.micro_batch_size)
        return [[Micro(tuple(map(int, samples)), total) for samples in turn] for turn in groups]

    def _sample(self, place: int) -> int:
        epoch, within = divmod(place, len(self._tokens))
        if self._epoch[0] != epoch:
            order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(self._tokens))
            self._epoch = (epoch, order)
        return int(self._epoch[1][within])

    def _balanced(self, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Put samples of like length side by side, so that devices that work at the same time have as much to do.

        Only the order within an update changes, which does not change what the update learns.
        """
        return batch[np.argsort(-self._tokens[batch], kind="stable")]
