"""An answer with its marks, cut where a stop string cut its text."""

from __future__ import annotations

import re
from collections.abc import Iterable


def with_marks(marked: str, text: str, marks: Iterable[str]) -> str:
    """As much of a marked text as `text` has of it: a stop text ends an answer before its last tokens do.

    marks: the special tokens that stand in `marked` and not in `text`.
    """
    end = taken = 0
    for mark in re.finditer("|".join(map(re.escape, marks)), marked):
        plain = mark.start() - end
        if taken + plain > len(text):
            break
        taken, end = taken + plain, mark.end()
    return marked[: end + len(text) - taken] if marked else text
