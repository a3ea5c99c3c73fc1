"""A question and its right answer, and how the wording of a question is varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.generator.drawing import Box


@dataclass(frozen=True)
class Turn:
    """task: the kind of question, for the count of right answers. boxes: what those of the answer have to cover."""

    task: str
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of them."""
    return options[int(rng.integers(len(options)))]


def worded(rng: np.random.Generator, options: Sequence[str], **words: str) -> str:
    """One of the wordings with its words filled in, at times typed carelessly, as people do."""
    text = pick(rng, options).format(**words)
    manner = rng.random()
    if manner < 0.15:
        return text.lower()
    if manner < 0.3:
        return text.rstrip("?.")
    if manner < 0.4:
        return text.lower().rstrip("?.")
    return text


def a(name: str) -> str:
    """With its article: "a red circle", "an orange star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str, count: int = 2) -> str:
    """Of the kinds of things there are: "crosses", "circles"; but "circle" for one."""
    if count == 1:
        return name
    return f"{name}es" if name.endswith("s") else f"{name}s"


def listed(phrases: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
