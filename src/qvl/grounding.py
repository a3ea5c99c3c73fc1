"""Boxes in an answer: read from its marks, brought to pixels, drawn on the picture.

The model writes whole numbers in thousandths of the picture's width and height, whatever size it was resized to:
`<|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`. The marks are special tokens, so
the text has to be the one that keeps those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

Point = tuple[int, int]

_SCALE = 1000
_INSIDE = r"((?:(?!<\|).)*)"  # up to the next mark: what a cut-off box left open does not swallow the one after it
_MARKED = re.compile(
    rf"<\|object_ref_start\|>(?P<label>{_INSIDE})<\|object_ref_end\|>"
    rf"|<\|box_start\|>(?P<box>{_INSIDE})<\|box_end\|>"
    rf"|<\|quad_start\|>(?P<quad>{_INSIDE})<\|quad_end\|>",
    re.DOTALL,
)
_POINT = r"\(\s*(\d+)\s*,\s*(\d+)\s*\)"
_BOX = re.compile(r"\s*,?\s*".join([_POINT] * 2))
_QUAD = re.compile(r"\s*,?\s*".join([_POINT] * 4))
_BETWEEN_BOXES = re.compile(r"[\s,;]*")
# Told apart by people who see colours differently, too (Okabe and Ito), the palest left out.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3fbf", "#8b4513")

# Pillow's own font has no letter but those of English. Looked for by name where the system keeps its fonts; the first
# that has all letters of all labels is taken.
_FONTS = (
    "DejaVuSans.ttf",
    "Arial.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "YuGothM.ttc",
    "Arial Unicode.ttf",
)


@dataclass(frozen=True)
class Box:
    """A region of a picture. `points` are two corners (top left, bottom right) or the four of a quad, as (x, y).

    In thousandths of the picture as `parse_boxes` gives it, in pixels after `to_pixels`.
    """

    label: str | None
    points: tuple[Point, ...]

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2), the smallest upright box around the points."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def to_pixels(self, size: tuple[int, int]) -> Box:
        """The box in pixels of a picture of `size` (height, width).

        As Qwen documents it: x / 1000 * width, rounded down; clipped to 0..width and 0..height.
        """
        height, width = size
        points = tuple((min(x * width // _SCALE, width), min(y * height // _SCALE, height)) for x, y in self.points)
        return Box(self.label, points)


def parse_boxes(marked_text: str) -> list[Box]:
    """All well-formed boxes and quads in the order of the text; malformed and cut-off ones are skipped.

    A label belongs to the boxes after it for as long as nothing but space and commas stands between those.
    """
    boxes: list[Box] = []
    label: str | None = None
    end_of_box: int | None = None
    for match in _MARKED.finditer(marked_text):
        if match["label"] is not None:
            label, end_of_box = match["label"].strip() or None, None
            continue
        if end_of_box is not None and not _BETWEEN_BOXES.fullmatch(marked_text, end_of_box, match.start()):
            label = None
        end_of_box = match.end()
        points = _points(_BOX, match["box"]) if match["box"] is not None else _points(_QUAD, match["quad"])
        if len(points) == 2:
            (x1, y1), (x2, y2) = points
            points = ((min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2)))
        if points:
            boxes.append(Box(label, points))
    return boxes


def draw_boxes(picture: PILImage.Image, boxes: Sequence[Box]) -> PILImage.Image:
    """A copy of `picture` in RGB with `boxes`, which are in its pixels, drawn on it and labelled.

    Boxes of one label share a colour. A light and a dark edge run along each line, so that it shows on any background.
    Where no font here can write a label, it is the number of the box, from 1.
    """
    from PIL import ImageDraw

    drawn = picture.convert("RGB")
    if drawn is picture:
        drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    shorter = min(drawn.size)
    line = max(3, round(shorter / 150))
    texts = [" ".join((box.label or "").split()) for box in boxes]
    font, can_write = _font_for(texts, max(12, round(shorter / 28)))
    colours: dict[str | int, str] = {}
    for index, box in enumerate(boxes):
        key = index if box.label is None else box.label
        colour = colours.setdefault(key, _COLOURS[len(colours) % len(_COLOURS)])
        _outline(canvas, box, colour, line, drawn.size)
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True), 1):  # last, so that no line runs through one
        if box.label:
            _label(canvas, box, text if can_write(text) else str(number), colours[box.label], font, drawn.size)
    return drawn


def _font_for(texts: Sequence[str], size: int) -> tuple[Font, Callable[[str], bool]]:
    """The first font that has all letters, else Pillow's own; and whether it has those of a text."""
    from PIL import ImageFont

    usual = ImageFont.load_default(size=size)
    if all(_has(usual, text) for text in texts):
        return usual, partial(_has, usual)
    for name in _FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except (OSError, ImportError):
            continue
        if all(_has(font, text) for text in texts):
            return font, partial(_has, font)
    return usual, partial(_has, usual)


def _has(font: Font, text: str) -> bool:
    """Whether it has a glyph for every letter: what it draws for those that it has not is that of one nobody has."""
    try:
        none = bytes(font.getmask("\U0010ffff"))
        return all(letter.isspace() or bytes(font.getmask(letter)) != none for letter in text)
    except UnicodeEncodeError:  # a Pillow without FreeType, whose font is Latin
        return text.isascii()


def _points(pattern: re.Pattern[str], inside: str) -> tuple[Point, ...]:
    match = pattern.fullmatch(inside.strip())
    if match is None:
        return ()
    numbers = [min(int(digits[:9]), _SCALE) for digits in match.groups()]  # no picture has a millionth thousandth
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _outline(canvas: ImageDraw.ImageDraw, box: Box, colour: str, line: int, size: tuple[int, int]) -> None:
    right, bottom = size[0] - 1, size[1] - 1
    corners = [(min(x, right), min(y, bottom)) for x, y in box.points]
    if len(corners) == 2:
        (x1, y1), (x2, y2) = corners
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    ring = [*corners, corners[0], corners[1]]  # one side twice, so that the last joint is closed as well
    for paint, width in (("black", line + 4), ("white", line + 2), (colour, line)):
        canvas.line(ring, fill=paint, width=width, joint="curve")


def _label(
    canvas: ImageDraw.ImageDraw,
    box: Box,
    text: str,
    colour: str,
    font: Font,
    size: tuple[int, int],
) -> None:
    """White on the box's colour, above the box, or inside it where the picture ends."""
    pad = 3
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, _, _ = box.bounds
    x = max(0, min(x1, size[0] - int(width)))
    y = y1 - height if y1 >= height else y1
    canvas.rectangle((x, y, x + width, y + height), fill=colour, outline="white")
    canvas.text((x + pad - left, y + pad - top), text, fill="white", font=font, stroke_width=1, stroke_fill="black")
