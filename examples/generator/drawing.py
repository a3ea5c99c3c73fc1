"""Shapes and small pictographs on a canvas, drawn finer than they are kept, which smooths their edges."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

from PIL import Image, ImageDraw

FINER = 2
Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the final picture."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    @property
    def centre(self) -> Point:
        """The point in the middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def overlaps(self, other: Box, gap: float) -> bool:
        """Whether less than `gap` pixels lie between the two."""
        return not (
            self.right + gap <= other.left
            or other.right + gap <= self.left
            or self.bottom + gap <= other.top
            or other.bottom + gap <= self.top
        )

    def moved(self, dx: float, dy: float) -> Box:
        """The same box elsewhere."""
        return Box(self.left + dx, self.top + dy, self.right + dx, self.bottom + dy)

    def between(self, other: Box) -> Box:
        """Halfway to another."""
        return Box(*((one + two) / 2 for one, two in zip(astuple(self), astuple(other), strict=True)))

    def scaled(self, factor: float) -> Box:
        """The same centre, other sides."""
        (x, y), w, h = self.centre, self.width * factor / 2, self.height * factor / 2
        return Box(x - w, y - h, x + w, y + h)


class Canvas:
    """Draws in the unit square of a box: (0, 0) is its upper left corner, (1, 1) its lower right one."""

    def __init__(self, background: Image.Image) -> None:
        self.size = background.size
        self.image = background.resize((background.width * FINER, background.height * FINER), Image.Resampling.BILINEAR)
        self._draw = ImageDraw.Draw(self.image)

    def copied(self) -> Canvas:
        """One that is drawn on by itself, for frames before one background: to make it finer takes longest of all."""
        other = copy.copy(self)
        other.image = self.image.copy()
        other._draw = ImageDraw.Draw(other.image)
        return other

    def polygon(self, box: Box, points: list[Point], colour: Colour) -> None:
        """Fill a polygon given in the box's unit square."""
        corners = [(FINER * (box.left + x * box.width), FINER * (box.top + y * box.height)) for x, y in points]
        self._draw.polygon(corners, fill=colour)

    def ellipse(self, box: Box, colour: Colour, part: tuple[float, float, float, float] = (0, 0, 1, 1)) -> None:
        """Fill the ellipse of a part of the box, given as left, top, right, bottom in its unit square."""
        left, top, right, bottom = part
        self._draw.ellipse(
            [
                FINER * (box.left + left * box.width),
                FINER * (box.top + top * box.height),
                FINER * (box.left + right * box.width),
                FINER * (box.top + bottom * box.height),
            ],
            fill=colour,
        )

    def finish(self) -> Image.Image:
        """The picture in its final size."""
        return self.image.resize(self.size, Image.Resampling.BOX)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Its four corners."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star() -> list[Point]:
    """Five spikes, stretched to fill the unit square."""
    reach = [1.0 if n % 2 == 0 else 0.42 for n in range(10)]
    raw = [(r * math.sin(math.pi * n / 5), -r * math.cos(math.pi * n / 5)) for n, r in enumerate(reach)]
    left, right = min(x for x, _ in raw), max(x for x, _ in raw)
    top, bottom = min(y for _, y in raw), max(y for _, y in raw)
    return [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in raw]


_POLYGONS: dict[str, list[Point]] = {
    "square": rectangle(0, 0, 1, 1),
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _star(),
    "cross": [
        *((0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)),
        *((0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)),
    ],
}
SHAPES = ("circle", *_POLYGONS)


def _darker(colour: Colour) -> Colour:
    red, green, blue = (round(value * 0.55) for value in colour)
    return red, green, blue


def _house(canvas: Canvas, box: Box, colour: Colour) -> None:
    canvas.polygon(box, rectangle(0.1, 0.42, 0.9, 1), colour)
    canvas.polygon(box, [(0, 0.45), (0.5, 0), (1, 0.45)], _darker(colour))
    canvas.polygon(box, rectangle(0.42, 0.66, 0.6, 1), (90, 60, 30))
    canvas.polygon(box, rectangle(0.2, 0.55, 0.34, 0.7), (225, 240, 250))
    canvas.polygon(box, rectangle(0.68, 0.55, 0.82, 0.7), (225, 240, 250))


def _tree(canvas: Canvas, box: Box, colour: Colour) -> None:
    canvas.polygon(box, rectangle(0.4, 0.55, 0.6, 1), (110, 70, 30))
    canvas.ellipse(box, colour, (0, 0.15, 0.62, 0.65))
    canvas.ellipse(box, colour, (0.38, 0.15, 1, 0.65))
    canvas.ellipse(box, colour, (0.18, 0, 0.82, 0.5))


def _car(canvas: Canvas, box: Box, colour: Colour) -> None:
    canvas.polygon(box, rectangle(0, 0.4, 1, 0.8), colour)
    canvas.polygon(box, [(0.18, 0.42), (0.32, 0), (0.72, 0), (0.86, 0.42)], colour)
    canvas.polygon(box, [(0.27, 0.4), (0.36, 0.1), (0.5, 0.1), (0.5, 0.4)], (225, 240, 250))
    canvas.polygon(box, [(0.55, 0.4), (0.55, 0.1), (0.68, 0.1), (0.77, 0.4)], (225, 240, 250))
    for left in (0.1, 0.64):
        canvas.ellipse(box, (30, 30, 30), (left, 0.58, left + 0.26, 1))


def _sun(canvas: Canvas, box: Box, colour: Colour) -> None:
    for turn in range(8):
        angle = math.pi * turn / 4
        tip = (0.5 + 0.5 * math.cos(angle), 0.5 + 0.5 * math.sin(angle))
        feet = [(0.5 + 0.28 * math.cos(angle + s), 0.5 + 0.28 * math.sin(angle + s)) for s in (-0.35, 0.35)]
        canvas.polygon(box, [tip, *feet], colour)
    canvas.ellipse(box, colour, (0.2, 0.2, 0.8, 0.8))


def _cloud(canvas: Canvas, box: Box, colour: Colour) -> None:
    for part in ((0, 0.35, 0.45, 1), (0.55, 0.35, 1, 1), (0.2, 0, 0.75, 0.95)):
        canvas.ellipse(box, colour, part)


_PICTOGRAPHS: dict[str, Callable[[Canvas, Box, Colour], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "sun": _sun,
    "cloud": _cloud,
}


def draw(canvas: Canvas, kind: str, box: Box, colour: Colour) -> None:
    """Draw a shape or a pictograph so that it fills its box."""
    if kind in _PICTOGRAPHS:
        _PICTOGRAPHS[kind](canvas, box, colour)
    elif kind == "circle":
        canvas.ellipse(box, colour)
    else:
        canvas.polygon(box, _POLYGONS[kind], colour)
