"""Pictures with a number or a word, in several fonts, and questions about them.

The fonts come with Matplotlib, which the training dependencies bring along.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.generator.drawing import Box
from examples.generator.scenes import COLOURS, picture_size, plain_ground, shade
from examples.generator.turns import Turn, worded

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "STIXGeneralBol")
_LIST = """
cat dog sun car hat cup bus box red key map pen tea sea sky ice egg fox owl bee ant jam zoo toy
tree fish bird book door milk moon star ship rain snow wind fire leaf lamp ring desk bell king cake
stop open exit sale free help left page home love code data time work play jump hero exam quiz park
apple bread chair table water house train plane horse mouse snake tiger zebra lemon grape pizza music
radio phone clock paper stone river ocean cloud storm light green black white brown happy hello world
"""
WORDS = tuple(_LIST.split())


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of Matplotlib's fonts. size: in pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def written(rng: np.random.Generator) -> str:
    """One to four digits, a word of the list, or letters that make no word and have to be read one by one.

    Capitals only: by themselves, "s" and "S" or "o" and "O" are the same.
    """
    manner = rng.random()
    if manner < 0.4:
        return "".join(str(digit) for digit in rng.integers(0, 10, int(rng.integers(1, 5))))
    if manner < 0.7:
        word = WORDS[int(rng.integers(len(WORDS)))]
    else:
        word = "".join(
            "bcdfghjklmnprstvwz"[int(rng.integers(18))] if n % 2 == 0 else "aeiou"[int(rng.integers(5))]
            for n in range(int(rng.integers(2, 6)))
        )
    return word.upper()


@dataclass(frozen=True)
class Text:
    """A picture with one line of text. colour: its name. boxes: one a character."""

    image: Image.Image
    text: str
    colour: str
    boxes: tuple[Box, ...]


def text_picture(rng: np.random.Generator, longest: int | None = None) -> Text:
    """One line of text on a quiet ground. longest: cut to so many characters."""
    text = written(rng)[:longest]
    width, height = picture_size(rng, narrowest={4: 1.15, 5: 1.4}.get(len(text), 0.85))
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    image = plain_ground(rng, width, height)
    # Most of the picture's width: letters of a few pixels can not be told apart once the picture is made small.
    font_name = FONTS[int(rng.integers(len(FONTS)))]
    probe = font(font_name, 100).getbbox(text)
    fit = min(0.92 * width / (probe[2] - probe[0]), 0.8 * height / (probe[3] - probe[1]))
    size = max(14, round(100 * fit * float(rng.uniform(0.85, 1.0))))
    size = min(size, round(0.5 * min(width, height)))
    face = font(font_name, size)
    left, top, right, bottom = face.getbbox(text)
    x = rng.uniform(0.03 * width, max(0.03 * width, 0.97 * width - (right - left))) - left
    y = rng.uniform(0.03 * height, max(0.03 * height, 0.97 * height - (bottom - top))) - top
    ImageDraw.Draw(image).text((x, y), text, fill=shade(rng, COLOURS[colour]), font=face)
    ends = [x + face.getlength(text[:count]) for count in range(len(text) + 1)]
    boxes = tuple(Box(begin, y + top, end, y + bottom) for begin, end in pairwise(ends))
    return Text(image, text, colour, boxes)


def read(rng: np.random.Generator, text: str) -> Turn:
    """What is written."""
    what = "number" if text.isdigit() else "word"
    question = worded(
        rng,
        (
            "Read the text.",
            "What does it say?",
            "What is written here?",
            "What text is in the picture?",
            "Read the {what}.",
            "Which {what} is this?",
        ),
        what=what,
    )
    return Turn("read", question, f'The {what} is "{text}".')


def text_described(rng: np.random.Generator, text: str, colour: str) -> Turn:
    """The whole picture in words."""
    what = "number" if text.isdigit() else "word"
    question = worded(rng, ("Describe this picture.", "Describe", "What do you see?", "What is in this picture?"))
    return Turn("describe", question, f'The picture shows the {what} "{text}" in {colour}.')


def text_colour(rng: np.random.Generator, text: str, colour: str) -> Turn:
    """The colour of the letters or digits."""
    what = "number" if text.isdigit() else "word"
    question = worded(
        rng, ("What colour is the text?", "What colour is the {what}?", "What color is the {what}?"), what=what
    )
    return Turn("colour", question, f"The {what} is {colour}.")
