"""Which samples a run learns from and which it is only judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_STREAM = 0x5EED  # sets this draw apart from that of the order of samples


def hold_out(
    keys: Sequence[tuple[int, int]], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions held out, in an order of chance, and those to learn from, ascending; both int64.

    keys: of each position, equal for the repeats of one sample. What is held out is so with all its repeats, of which
    one is judged: else a run would be judged by what it has learnt. share: of the different samples, 0 to 1, rounded;
    of two or more at least one, where it is not 0.
    """
    first: dict[tuple[int, int], int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    positions = np.fromiter(first.values(), np.int64, len(first))
    order = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(len(positions))
    count = round(share * len(positions))
    if share > 0 and len(positions) > 1:
        count = max(1, count)
    held_out = positions[order[:count]]
    judged = {keys[position] for position in held_out}
    trained = np.asarray([position for position, key in enumerate(keys) if key not in judged], np.int64)
    return held_out, trained
