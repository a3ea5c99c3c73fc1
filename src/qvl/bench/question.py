"""The question that every side is asked: a picture made on the spot, and text of so many tokens. No Paddle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvl.errors import UsageError

_WORDS = "Describe this picture."
_DIGITS = "31415926535897932384626433832795028841971693993751"


@dataclass(frozen=True)
class Question:
    """picture: (width, height) in pixels, None for text alone. text_tokens: of the prompt beside those of the picture's
    content, so that 25 and a picture of 448x448, which is 256, are 281. new_tokens: of the answer."""

    picture: tuple[int, int] | None = (448, 448)
    text_tokens: int = 25
    new_tokens: int = 32

    def to_json(self) -> dict[str, Any]:
        return {
            "picture": list(self.picture) if self.picture else None,
            "text_tokens": self.text_tokens,
            "new_tokens": self.new_tokens,
        }


def write_picture(size: tuple[int, int], path: Path) -> None:
    """A picture with something in it everywhere, the same each time, as PNG."""
    from PIL import Image

    width, height = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(columns / 9) * np.cos(rows / 13), np.sin((columns + rows) / 21), np.cos(columns * rows / 4000)]
    noise = np.random.Generator(np.random.PCG64(0)).normal(0, 12, (height, width, 3))
    pixels = np.stack(waves, axis=-1) * 90 + 128 + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def fitting_text(wanted: int, count: Callable[[str], int]) -> str:
    """Text with which a prompt has `wanted` tokens beside its pictures'.

    count: those of a prompt with some text, which is not empty. Qwen2-VL's vocabularies have a token for each digit,
    which makes any number possible. Raises UsageError for one that is too small.
    """
    least = count(_DIGITS[0])
    if wanted < least:
        raise UsageError(f"--text-tokens is {wanted}; the least is {least}")
    words = _WORDS if count(_WORDS) <= wanted else ""
    missing = wanted - count(words) if words else wanted - least + 1
    text = words + (_DIGITS * (missing // len(_DIGITS) + 1))[:missing]
    found = count(text)
    if found != wanted:
        raise UsageError(f"--text-tokens {wanted} cannot be met with this tokenizer; {found} can")
    return text
