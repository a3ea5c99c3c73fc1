"""What is on a picture: things of a kind and a colour at their places, on a ground; and how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.generator.drawing import SHAPES, Box, Canvas, Colour, draw
from examples.generator.turns import pick

COLOURS: dict[str, Colour] = {
    "red": (214, 38, 38),
    "orange": (247, 130, 10),
    "yellow": (246, 214, 20),
    "green": (38, 158, 70),
    "blue": (30, 92, 205),
    "purple": (128, 44, 190),
    "black": (18, 18, 20),
}
# Pale or grey, so that every colour above stands out from every ground.
GROUNDS: tuple[Colour, ...] = (
    (255, 255, 255),
    (244, 240, 230),
    (225, 235, 245),
    (228, 242, 228),
    (248, 228, 232),
    (205, 205, 208),
    (150, 150, 156),
)
_IN_SKY = ("sun", "cloud")
_TREE: Colour = (40, 120, 55)
_SUN: Colour = (255, 205, 30)
_CLOUD: Colour = (250, 250, 252)
SMALL = (0.28, 0.36)  # sides of small and large things, as shares of the picture's shorter side
LARGE = (0.5, 0.62)
_MOST_OUTDOORS = 5


@dataclass(frozen=True)
class Thing:
    """Something on a picture. colour and size are None where no word is used for them."""

    kind: str
    colour: str | None
    size: str | None
    box: Box
    rgb: Colour

    @property
    def name(self) -> str:
        """Such as "red circle"."""
        return f"{self.colour} {self.kind}" if self.colour else self.kind

    @property
    def full_name(self) -> str:
        """Such as "large red circle"."""
        return f"{self.size} {self.name}" if self.size else self.name


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. outdoors: sky and grass with pictographs, instead of plain ground with shapes."""

    width: int
    height: int
    ground: Image.Image
    things: tuple[Thing, ...]
    outdoors: bool = False

    def draw(self, canvas: Canvas | None = None) -> Image.Image:
        """RGB, width x height. canvas: one of the scene's ground to draw on, else a new one."""
        canvas = canvas or Canvas(self.ground)
        for thing in self.things:
            draw(canvas, thing.kind, thing.box, thing.rgb)
        return canvas.finish()

    def named(self, name: str) -> list[Thing]:
        """The things with this colour and kind."""
        return [thing for thing in self.things if thing.name == name]

    def unique(self) -> list[Thing]:
        """Things that their name alone tells from all others."""
        return [thing for thing in self.things if len(self.named(thing.name)) == 1]


def picture_size(rng: np.random.Generator, narrowest: float = 0.5) -> tuple[int, int]:
    """Width and height: 20 000 to 170 000 pixels, at most twice as wide as high, at least `narrowest` times."""
    ratio = float(np.exp(rng.uniform(np.log(narrowest), np.log(2))))
    side = float(np.exp(rng.uniform(np.log(140), np.log(410))))
    return round(side * ratio**0.5), round(side / ratio**0.5)


def shade(rng: np.random.Generator, colour: Colour, spread: int = 14) -> Colour:
    """A colour near this one."""
    red, green, blue = (int(np.clip(value + rng.integers(-spread, spread + 1), 0, 255)) for value in colour)
    return red, green, blue


def plain_ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """One colour, a blend of two, stripes or grain, always quiet."""
    first = np.asarray(shade(rng, GROUNDS[rng.integers(len(GROUNDS))], 8), np.float32)
    pixels = np.broadcast_to(first, (height, width, 3)).copy()
    kind = rng.integers(5)
    if kind == 1:
        second = np.asarray(GROUNDS[rng.integers(len(GROUNDS))], np.float32)
        along = np.linspace(0, 1, height if rng.integers(2) else width, dtype=np.float32)
        blend = along[:, None, None] if len(along) == height else along[None, :, None]
        pixels = pixels * (1 - blend) + second * blend
    elif kind == 2:
        step = int(rng.integers(8, 30))
        lines = (np.arange(height if rng.integers(2) else width) // step % 2).astype(np.float32) * 10
        pixels -= lines[:, None, None] if len(lines) == height else lines[None, :, None]
    elif kind == 3:
        pixels += rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def shapes_scene(
    rng: np.random.Generator, size: tuple[int, int] | None = None, most: int = 4, alike: float = 0.0
) -> Scene:
    """One to `most` shapes; three or more in a picture are often several of one kind, which is worth counting.

    alike: how often a further one shares either its colour or its kind with one before it, at least.
    """
    width, height = size or picture_size(rng)
    short = min(width, height)
    count = int(rng.choice([1, 2, 3, 4], p=[0.22, 0.3, 0.27, 0.21]))
    count = min(count, most)
    repeated = look(rng) if count >= 2 and rng.random() < 0.45 else None
    things: list[Thing] = []
    for _ in range(count):
        if things and alike and rng.random() < alike:
            kind, colour = look_like(rng, things[int(rng.integers(len(things)))])
        else:
            kind, colour = repeated if repeated and rng.random() < 0.65 else look(rng)
        large = rng.random() < (0.5 if count <= 2 else 0.15)
        low, high = LARGE if large else SMALL
        side = rng.uniform(low, high) * short
        others = [thing.box for thing in things]
        box = free_place(rng, (side, side), (0, 0, width, height), others, short, from_left=others)
        if box is not None:
            rgb = shade(rng, COLOURS[colour])
            things.append(Thing(kind, colour, "large" if large else "small", box, rgb))
    return Scene(width, height, plain_ground(rng, width, height), in_order(things))


def outdoor_scene(rng: np.random.Generator) -> Scene:
    """One to five of a house, trees, cars, the sun and clouds before sky and grass."""
    while not (scene := _outdoor_scene(rng)).things:
        pass
    return scene


def _outdoor_scene(rng: np.random.Generator) -> Scene:
    width, height = picture_size(rng)
    horizon = height * rng.uniform(0.5, 0.62)
    sky, grass = shade(rng, (150, 205, 240)), shade(rng, (120, 185, 95))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: round(horizon)] = sky
    pixels[round(horizon) :] = grass
    wanted = [kind for kind, chance in (("house", 0.65), ("sun", 0.5)) if rng.random() < chance]
    for kind, most in (("tree", 3), ("car", 2), ("cloud", 3)):
        wanted += [kind] * int(rng.integers(0, most + 1))
    things: list[Thing] = []
    for index in rng.permutation(len(wanted))[:_MOST_OUTDOORS]:
        thing = _pictograph(rng, wanted[index], (width, height, horizon), things)
        if thing is not None:
            things.append(thing)
    return Scene(width, height, Image.fromarray(pixels), in_order(things), outdoors=True)


def in_order(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """From left to right, what is in the sky before all else."""
    return tuple(sorted(things, key=lambda thing: (thing.kind not in _IN_SKY, thing.box.centre[0])))


def _apart(box: Box, others: Sequence[Box]) -> bool:
    return all(abs(box.centre[0] - other.centre[0]) > 0.25 * min(box.width, other.width) for other in others)


def free_place(
    rng: np.random.Generator,
    size: tuple[float, float],
    area: tuple[float, float, float, float],
    taken: Sequence[Box],
    short: float,
    from_left: Sequence[Box] = (),
) -> Box | None:
    """A place for a box of this size in the area, clear of the others; None when twenty tries found none.

    from_left: those of which it has to be clear whether they come before it or behind it, from left to right.
    """
    left, top, right, bottom = area
    margin = 0.02 * short
    for _ in range(20):
        x = rng.uniform(left + margin, max(left + margin, right - margin - size[0]))
        y = rng.uniform(top + margin, max(top + margin, bottom - margin - size[1]))
        box = Box(x, y, x + size[0], y + size[1])
        if _apart(box, from_left) and not any(box.overlaps(other, 0.03 * short) for other in taken):
            return box
    return None


def look(rng: np.random.Generator) -> tuple[str, str]:
    """Kind and colour of any shape."""
    return SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]


def look_like(rng: np.random.Generator, thing: Thing) -> tuple[str, str]:
    """Kind and colour of a shape that shares one of them with this one."""
    if thing.colour is None or rng.random() < 0.5:
        return thing.kind, pick(rng, [name for name in COLOURS if name != thing.colour])
    return pick(rng, [kind for kind in SHAPES if kind != thing.kind]), thing.colour


def _pictograph(
    rng: np.random.Generator, kind: str, frame: tuple[int, int, float], others: Sequence[Thing]
) -> Thing | None:
    width, height, horizon = frame
    taken = [other.box for other in others]
    in_line = [other.box for other in others if (other.kind in _IN_SKY) == (kind in _IN_SKY)]
    short = min(width, height)
    side = short * rng.uniform(0.26, 0.36 if kind != "house" else 0.46)
    size = {"car": (side, side * 0.6), "cloud": (side, side * 0.55), "tree": (side * 0.8, side)}.get(kind, (side, side))
    if kind in _IN_SKY:
        area = (0.0, 0.0, float(width), horizon * 0.75)
    else:  # stands on the grass
        foot = rng.uniform(horizon + size[1] * 0.15, max(height * 0.96, horizon + size[1] * 0.2))
        area = (0.0, foot - size[1] - 0.02 * short, float(width), foot)
    box = free_place(rng, size, area, taken, short, from_left=in_line)
    if box is None or box.top < 0 or box.bottom > height or box.right > width:
        return None
    if kind in ("house", "car"):
        colour = list(COLOURS)[rng.integers(len(COLOURS) - 1)]  # no black ones: windows and wheels would drown
        return Thing(kind, colour, None, box, shade(rng, COLOURS[colour]))
    rgb = {"tree": _TREE, "sun": _SUN, "cloud": _CLOUD}[kind]
    return Thing(kind, None, None, box, shade(rng, rgb, 8))
