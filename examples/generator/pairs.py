"""Two pictures and what tells them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from examples.generator.drawing import SHAPES
from examples.generator.scenes import COLOURS, Scene, picture_size, plain_ground, shade, shapes_scene
from examples.generator.turns import Turn, a, listed, pick, plural, worded


def pair(rng: np.random.Generator, changed: float = 0.5, alike: float = 0.0) -> tuple[tuple[Scene, Scene], list[Turn]]:
    """Two scenes and questions about both.

    changed: how often the second is the first, changed or not. alike: see `shapes_scene`.
    """
    size = picture_size(rng) if rng.random() < 0.7 else None
    first = shapes_scene(rng, size, most=4, alike=alike)
    if rng.random() >= changed:
        second = shapes_scene(rng, size, most=4, alike=alike)
        turns = [turn for turn in (_more(rng, first, second), _which(rng, first, second)) if turn]
        return (first, second), turns[:: pick(rng, (1, -1))]
    first, second, answer = _changed(rng, first)
    question = worded(
        rng,
        (
            "What is the difference between the two pictures?",
            "What is different?",
            "Compare the two pictures.",
            "What changed from the first picture to the second?",
        ),
    )
    turns = [Turn("compare", question, answer)]
    extra = _more(rng, first, second) if rng.random() < 0.5 else None
    return (first, second), [*turns, *([extra] if extra else [])]


def _more(rng: np.random.Generator, first: Scene, second: Scene) -> Turn:
    question = worded(
        rng, ("Which picture has more shapes?", "In which picture are more shapes?", "Which picture shows more shapes?")
    )
    counts = len(first.things), len(second.things)
    more = "both have as many"
    if counts[0] != counts[1]:
        more = f"the {'first' if counts[0] > counts[1] else 'second'} has more"
    return Turn(
        "compare",
        question,
        f"The first picture has {counts[0]} {plural('shape', counts[0])} and the second {counts[1]}, so {more}.",
    )


def _which(rng: np.random.Generator, first: Scene, second: Scene) -> Turn | None:
    """In which of the two something is."""
    names = sorted({thing.name for thing in first.things} ^ {thing.name for thing in second.things})
    if not names:
        return None
    name = pick(rng, names)
    question = worded(
        rng, ("Which picture shows {name}?", "In which picture is {name}?", "Which picture has {name}?"), name=a(name)
    )
    where = "first" if first.named(name) else "second"
    return Turn("compare", question, f"{a(name).capitalize()} is in the {where} picture.")


def _changed(rng: np.random.Generator, scene: Scene) -> tuple[Scene, Scene, str]:
    """The scene before and after one change, or none, and what to say of it: what is where, and so what changed.

    What changes is told from all else by its name, before and after.
    """
    things = list(scene.things)
    names = {thing.name for thing in things}
    alone = [number for number, thing in enumerate(things) if len(scene.named(thing.name)) == 1]
    number = pick(rng, alone) if alone else 0
    thing = things[number]
    manner = int(rng.integers(5)) if alone else 4
    if manner == 0:
        colour = pick(rng, [name for name in COLOURS if f"{name} {thing.kind}" not in names])
        things[number] = replace(thing, colour=colour, rgb=shade(rng, COLOURS[colour]))
        answer = f"the {thing.name} has become {colour}"
    elif manner == 1 and (kinds := [kind for kind in SHAPES if f"{thing.colour} {kind}" not in names]):
        kind = pick(rng, kinds)
        things[number] = replace(thing, kind=kind)
        answer = f"the {thing.name} has become {a(kind)}"
    elif manner in (2, 3) and len(things) > 1:
        del things[number]
        answer = f"the {thing.name} is {'gone' if manner == 2 else 'new'}"
    else:
        answer = "both show the same"
    ground = plain_ground(rng, scene.width, scene.height) if rng.random() < 0.3 else scene.ground
    other = replace(scene, things=tuple(things), ground=ground)
    before, after = (other, scene) if manner == 3 and len(things) < len(scene.things) else (scene, other)
    return before, after, f"I see {listed(_in_which(before, after))}: {answer}."


def _in_which(before: Scene, after: Scene) -> list[str]:
    """All things of both from left to right, each with the picture that it is in, or what is in its place now.

    Said right behind its name: that is when a small model has found where it is. From two lists it would have to find
    what tells them apart all at once; and what stands where something was it would leave out, if it were an entry of
    its own: the list seems to be at its end.
    """
    found = []
    for thing in before.things:
        instead = [other for other in after.things if other.box == thing.box and other != thing]
        where = "in both" if thing in after.things else "in the first"
        found.append((thing, f"that is now {a(instead[0].name)}" if instead else where))
    places = {thing.box for thing in before.things}
    found += [(thing, "in the second") for thing in after.things if thing.box not in places]
    found.sort(key=lambda one: one[0].box.centre[0])
    return [f"{a(thing.name)} {where}" for thing, where in found]
