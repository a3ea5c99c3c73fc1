"""Clips in which one thing moves, changes its colour, appears, vanishes, grows or shrinks; others stand still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from examples.generator.drawing import Box, Canvas
from examples.generator.scenes import (
    COLOURS,
    Scene,
    Thing,
    free_place,
    in_order,
    look,
    look_like,
    plain_ground,
    shade,
)
from examples.generator.turns import Turn, a, listed, pick, worded

FPS = 8
_WAYS = {"to the right": (1, 0), "to the left": (-1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Clip:
    """scenes: one a frame, of one even size and before one ground, FPS of them a second."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """RGB, drawn anew."""
        canvas = Canvas(self.scenes[0].ground)
        return tuple(scene.draw(canvas.copied()) for scene in self.scenes)


def clip(rng: np.random.Generator, moving: float = 0.6, turning: float = 0.2, alike: float = 0.0) -> Clip:
    """Two to three seconds of 16 to 24 frames.

    moving: how often something moves. turning: of what changes in its place, how often the colour does. alike: how
    often what stands still shares its colour or its kind with what does not.
    """
    width, height = (2 * int(rng.integers(56, 100)) for _ in range(2))
    short = min(width, height)
    count = int(rng.integers(16, 25))
    hero, way, path = _hero(rng, width, height, moving, turning)
    others: list[Thing] = []
    for _ in range(int(rng.integers(0, 3))):
        thing = _thing(rng, short, look_like(rng, hero) if alike and rng.random() < alike else look(rng))
        taken = [*path, *(other.box for other in others)]
        known = [hero, *others]
        begun = [one.box for one in known]
        box = free_place(rng, (thing.box.width, thing.box.height), (0, 0, width, height), taken, short, begun)
        if box is not None and thing.name not in {one.name for one in known}:
            others.append(replace(thing, box=box))
    ground = plain_ground(rng, width, height)
    scenes = []
    change = _WAYS.get(way) is None
    names = {hero.name, *(other.name for other in others)}
    other_colour = pick(rng, [name for name in COLOURS if f"{name} {hero.kind}" not in names])
    for n in range(count):
        share = n / (count - 1)
        shown: Thing | None = replace(hero, box=path[0].moved(*_step(path, share)))
        if change:
            shown = _altered(hero, way, share, other_colour)
        things = [*others, *([shown] if shown else [])]
        scenes.append(Scene(width, height, ground, in_order(things)))
    return Clip(tuple(scenes), tuple(_turns(rng, hero, way, other_colour, others)))


def write_clip(path: Path, frames: tuple[Image.Image, ...]) -> None:
    """An MP4 that every decoder reads, the same bytes every time."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        still = "rc-lookahead=0:sync-lookahead=0:mbtree=0"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": still}
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        container.flags |= av.container.core.Flags.bitexact.value
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _thing(rng: np.random.Generator, short: float, kind_and_colour: tuple[str, str]) -> Thing:
    kind, colour = kind_and_colour
    side = short * rng.uniform(0.3, 0.38)
    return Thing(kind, colour, None, Box(0, 0, side, side), shade(rng, COLOURS[colour]))


def _hero(
    rng: np.random.Generator, width: int, height: int, moving: float, turning: float
) -> tuple[Thing, str, list[Box]]:
    """What moves or changes, how, and the boxes at the start and the end of its way (and in between)."""
    thing = _thing(rng, min(width, height), look(rng))
    side = thing.box.width
    if rng.random() < moving:
        way = pick(rng, tuple(_WAYS))
        dx, dy = _WAYS[way]
        room = (width if dx else height) - side
        travel = room * rng.uniform(0.55, 0.95)
        across = rng.uniform(0, (height if dx else width) - side)
        begin = rng.uniform(0, room - travel)
        if dx + dy < 0:
            begin += travel
        start = thing.box.moved(begin, across) if dx else thing.box.moved(across, begin)
        return replace(thing, box=start), way, [start.moved(dx * travel * n / 4, dy * travel * n / 4) for n in range(5)]
    way = "turns" if rng.random() < turning else pick(rng, ("appears", "vanishes", "grows", "shrinks"))
    full = thing.box.scaled(1.6) if way in ("grows", "shrinks") else thing.box
    x, y = rng.uniform(0, width - full.width), rng.uniform(0, height - full.height)
    full = full.moved(x - full.left, y - full.top)
    return replace(thing, box=full), way, [full]


def _step(path: list[Box], share: float) -> tuple[float, float]:
    return (path[-1].left - path[0].left) * share, (path[-1].top - path[0].top) * share


def _altered(hero: Thing, way: str, share: float, other_colour: str) -> Thing | None:
    if way == "turns":
        return replace(hero, colour=other_colour, rgb=COLOURS[other_colour]) if share > 0.5 else hero
    if way in ("appears", "vanishes"):
        return hero if (share > 0.5) == (way == "appears") else None
    size = 0.45 + 0.55 * (share if way == "grows" else 1 - share)
    return replace(hero, box=hero.box.scaled(size))


def _turns(rng: np.random.Generator, hero: Thing, way: str, other_colour: str, others: list[Thing]) -> list[Turn]:
    """Asked what happens, all things are named from left to right, and what each does is said behind its name."""
    name = hero.name
    does = f"turns {other_colour}" if way == "turns" else way if way not in _WAYS else f"moves {way}"
    all_do = [f"{a(one.name)} {does if one is hero else 'stands still'}" for one in in_order([hero, *others])]
    whole = f"{listed(all_do)}."
    whole = whole[0].upper() + whole[1:]
    happens = worded(
        rng, ("What happens in the clip?", "What happens?", "Describe this video.", "What happens in this video?")
    )
    if way not in _WAYS:
        question = worded(rng, ("What changes?", "What changes in the clip?", "What changes in the video?"))
        return [Turn("clip", question if rng.random() < 0.5 else happens, whole)]
    what = worded(rng, ("What moves?", "What is moving?", "Which shape moves?"))
    which = worded(
        rng,
        ("Which way does the {name} move?", "Where does the {name} go?", "In which direction does the {name} move?"),
        name=name,
    )
    turns = [Turn("clip", what, whole), Turn("clip", which, f"The {name} moves {way}."), Turn("clip", happens, whole)]
    one = pick(rng, [hero, *others])
    asked = worded(rng, ("Does the {name} move?", "Is the {name} moving?"), name=one.name)
    answer = f"moves {way}, so yes" if one is hero else "stands still, so no"
    turns.append(Turn("clip", asked, f"The {one.name} {answer}."))
    return turns
