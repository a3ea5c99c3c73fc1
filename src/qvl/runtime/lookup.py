"""Drafts without a second model: what followed the newest tokens when they came up before, in the prompt or the answer.

Texts that are read off a page, edited, quoted or counted through repeat what is there already, and boxes and tables
repeat themselves.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

# Two tokens that came up before are a hint, of one there is too much; longer than this is no better a hint.
SHORTEST = 2
LONGEST = 8


class Lookup:
    """The tokens of one prompt and its answer, searched from their end."""

    def __init__(
        self, prompt_ids: npt.NDArray[np.int64], room: int, *, never: Collection[int], last: Collection[int]
    ) -> None:
        """room: tokens the answer may have. never: ids not to propose. last: ids behind which nothing is proposed."""
        self._ids = np.empty(len(prompt_ids) + room, np.int64)
        self._ids[: len(prompt_ids)] = prompt_ids
        self._count = len(prompt_ids)
        self._never, self._last = frozenset(never), frozenset(last)

    def push(self, token: int) -> None:
        self._ids[self._count] = token
        self._count += 1

    def propose(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may come next; none when the newest `SHORTEST` came up for the first time."""
        start = self._after_the_longest_match()
        if start is None:
            return []
        draft: list[int] = self._ids[start : min(start + limit, self._count)].tolist()
        while len(draft) < limit:  # the match overlaps the end: what repeats goes on repeating
            draft.append(draft[len(draft) - (self._count - start)])
        for n, token in enumerate(draft):
            if token in self._never:
                return draft[:n]
            if token in self._last:
                return draft[: n + 1]
        return draft

    def _after_the_longest_match(self) -> int | None:
        """The place behind the longest earlier match of the newest tokens; of equally long ones the newest."""
        ids = self._ids[: self._count]
        ends, size = np.flatnonzero(ids[:-1] == ids[-1:]), 1
        while size < LONGEST:
            longer = ends[ends >= size]
            longer = longer[ids[longer - size] == ids[-1 - size]] if len(longer) else longer
            if not len(longer):
                break
            ends, size = longer, size + 1
        return int(ends[-1]) + 1 if size >= SHORTEST else None
