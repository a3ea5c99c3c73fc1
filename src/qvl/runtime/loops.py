"""Telling an answer that has got into a loop: the same few tokens over and over to the end."""

from __future__ import annotations

import numpy as np

# The longest stretch that is looked for, in tokens.
LONGEST = 64
# A loop is a stretch that came this often in a row, and with all its copies covers so many tokens: one token has to
# come 160 times, a line of ten 16 times. Rules of tables, dot leaders and rows of zeros stay below it.
COPIES = 4
COVERED = 160

_PERIODS = np.arange(1, LONGEST + 1)
_NEEDED = np.maximum(COVERED, COPIES * _PERIODS)


class LoopWatch:
    """Takes the tokens of one answer as they come."""

    def __init__(self) -> None:
        self.count = 0
        self._recent = np.full(LONGEST, -1, np.int64)  # newest first
        # For each period, how many of the newest tokens are what came that many tokens before them.
        self._runs = np.zeros(LONGEST, np.int64)

    def push(self, token: int) -> None:
        self._runs = np.where(self._recent == token, self._runs + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        self.count += 1

    @property
    def certain(self) -> int:
        """How many tokens will stay whatever comes: those behind may turn out to be second copies."""
        return self.count - int(self._runs.max())

    @property
    def end(self) -> int | None:
        """Once there is a loop: how many tokens there are to the end of its first copy."""
        loops = np.flatnonzero(_PERIODS + self._runs >= _NEEDED)
        return self.count - int(self._runs[loops[0]]) if len(loops) else None
