"""Questions about one picture of shapes or an outdoor scene, with their answers.

An answer names what it is about before it says what is asked: a small model finds a thing best when it has just said
its name, and has no layers to do so before it speaks. For the same reason it counts aloud.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from examples.generator.drawing import SHAPES, Box
from examples.generator.scenes import COLOURS, Scene, Thing
from examples.generator.turns import Turn, a, listed, pick, plural, worded

Ask = Callable[[np.random.Generator, Scene], Turn | None]
_SEEN = {"to the left of": "to the left", "to the right of": "to the right", "above": "above", "below": "below"}
_OUTDOORS = ("house", "tree", "car", "sun", "cloud")


def describe(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """All things from left to right."""
    question = worded(
        rng,
        (
            "Describe this picture.",
            "Describe the image.",
            "Describe",
            "What do you see?",
            "What is in this picture?",
            "What does the picture show?",
            "Tell me what is in the image.",
        ),
    )
    if not scene.things:
        return None
    return Turn("describe", question, f"The picture shows {listed([a(thing.full_name) for thing in scene.things])}.")


def in_detail(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """All things with their places. Of all answers this one says most about a picture for its length."""
    question = worded(
        rng,
        (
            "Describe this picture in detail.",
            "Describe the image in detail.",
            "Describe in detail",
            "What is where in this picture?",
            "Tell me what is where.",
        ),
    )
    phrases = [f"{a(thing.full_name)} {nearest_place(thing.box, scene.width, scene.height)}" for thing in scene.things]
    return Turn("detail", question, f"The picture shows {listed(phrases)}.")


def how_many(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Of a name, a kind, or of all shapes."""
    name, count = _counted_name(rng, scene)
    question = worded(
        rng,
        (
            "How many {names} are there?",
            "How many {names} do you see?",
            "Count the {names}.",
            "How many {names} are in the picture?",
        ),
        names=plural(name),
    )
    # What is counted is said again first: else it forgets which colour or which kind it is to put numbers to.
    found = f"{count or 'no'} {plural(name, count)}"
    return Turn("count", question, f"Looking for {plural(name)}, I see {listed(_counted(scene, name))}: {found}.")


def _counted(scene: Scene, name: str) -> list[str]:
    """All things from left to right, with a number behind each that is meant by the name, and "(no)" behind others.

    So there is always a token, the parenthesis, behind the name before it has to know whether that is meant.
    """
    phrases, count = [], 0
    for thing in scene.things:
        meant = name in ("shape", thing.kind, thing.name)
        count += meant
        phrases.append(f"{a(thing.name)} ({count if meant else 'no'})")
    return phrases


def _counted_name(rng: np.random.Generator, scene: Scene) -> tuple[str, int]:
    kinds = [thing.kind for thing in scene.things]
    manner = rng.random()
    if manner < 0.25 and not scene.outdoors:
        return "shape", len(kinds)
    if manner < 0.5:
        kind = pick(rng, kinds) if rng.random() < 0.75 else pick(rng, _OUTDOORS if scene.outdoors else SHAPES)
        return kind, kinds.count(kind)
    if rng.random() < 0.8:
        name = pick(rng, [thing.name for thing in scene.things])
    else:
        name = _absent(rng, scene) or pick(rng, kinds)
    return name, len(scene.named(name)) if name not in kinds else kinds.count(name)


def _absent(rng: np.random.Generator, scene: Scene) -> str | None:
    """A name of nothing in the picture, often with the colour or the kind of something in it."""
    kinds = ("house", "car") if scene.outdoors else SHAPES
    if scene.outdoors and rng.random() < 0.5:
        plain = [kind for kind in _OUTDOORS if all(thing.kind != kind for thing in scene.things)]
        if plain:
            return pick(rng, plain)
    for _ in range(10):
        some = scene.things[int(rng.integers(len(scene.things)))]
        colour = some.colour if some.colour and rng.random() < 0.4 else pick(rng, tuple(COLOURS))
        kind = some.kind if some.kind in kinds and rng.random() < 0.4 else pick(rng, kinds)
        if not scene.named(f"{colour} {kind}"):
            return f"{colour} {kind}"
    return None


def is_there(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Yes or no, equally often."""
    name = _asked_for(rng, scene, there=rng.random() < 0.5)
    if name is None:
        return None
    question = worded(
        rng,
        (
            "Is there {name}?",
            "Is there {name} in the picture?",
            "Can you see {name}?",
            "Do you see {name}?",
            "Does the picture show {name}?",
        ),
        name=a(name),
    )
    found = any(name in (thing.name, thing.kind) for thing in scene.things)
    return Turn("is there", question, f"Looking for {a(name)}: {'yes, there is' if found else 'no, there is none'}.")


def _asked_for(rng: np.random.Generator, scene: Scene, there: bool) -> str | None:
    """A kind or a name that is in the picture or is not."""
    if rng.random() < 0.65:
        return pick(rng, [thing.name for thing in scene.things]) if there else _absent(rng, scene)
    present = sorted({thing.kind for thing in scene.things})
    absent = [kind for kind in (_OUTDOORS if scene.outdoors else SHAPES) if kind not in present]
    return pick(rng, present if there else absent) if there or absent else None


def colour_of(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Of the only thing of its kind."""
    kinds = [thing.kind for thing in scene.things]
    only = [thing for thing in scene.things if thing.colour and kinds.count(thing.kind) == 1]
    if not only:
        return None
    thing = only[int(rng.integers(len(only)))]
    question = worded(
        rng,
        (
            "What colour is the {kind}?",
            "What color is the {kind}?",
            "Which colour does the {kind} have?",
            "Tell me the colour of the {kind}.",
        ),
        kind=thing.kind,
    )
    return Turn("colour", question, f"The {thing.kind} is {thing.colour}.")


def shape_of(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Of the only thing of its colour."""
    colours = [thing.colour for thing in scene.things]
    only = [thing for thing in scene.things if thing.colour and colours.count(thing.colour) == 1]
    if not only or scene.outdoors:
        return None
    thing = only[int(rng.integers(len(only)))]
    question = worded(
        rng,
        (
            "What shape is {colour}?",
            "What shape is the {colour} thing?",
            "Which shape is {colour}?",
            "What is the {colour} thing?",
        ),
        colour=str(thing.colour),
    )
    return Turn("shape", question, f"The {thing.colour} shape is {a(thing.kind)}.")


def where_is(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """In the picture: one of nine places, asked only when it is clear which."""
    clear = [(thing, place) for thing in scene.unique() if (place := place_of(thing.box, scene.width, scene.height))]
    if not clear:
        return None
    thing, place = clear[int(rng.integers(len(clear)))]
    question = worded(
        rng,
        ("Where is the {name}?", "Where in the picture is the {name}?", "In which part of the picture is the {name}?"),
        name=thing.name,
    )
    return Turn("where", question, f"The {thing.name} is {place}.")


def place_of(box: Box, width: int, height: int) -> str | None:
    """Such as "at the top left", "on the right", "in the middle"; None near a border between two of them."""
    shares = (box.centre[0] / width, box.centre[1] / height)
    if any(0.36 <= share <= 0.43 or 0.57 <= share <= 0.64 for share in shares):
        return None
    return nearest_place(box, width, height)


def nearest_place(box: Box, width: int, height: int) -> str:
    """The one of the nine places that its centre is nearest to."""
    x, y = box.centre[0] / width, box.centre[1] / height
    vertical = "top" if y < 0.395 else "bottom" if y > 0.605 else ""
    horizontal = "left" if x < 0.395 else "right" if x > 0.605 else ""
    if vertical:
        return f"at the {vertical} {horizontal}".strip()
    return f"on the {horizontal}" if horizontal else "in the middle"


def relation(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Where one thing is, seen from another: left, right, above or below, when one of them clearly prevails."""
    pairs = [
        (one, other, word)
        for one in scene.unique()
        for other in scene.unique()
        if one is not other and (word := _relation_word(one, other))
    ]
    if not pairs:
        return None
    one, other, word = pairs[int(rng.integers(len(pairs)))]
    words = {"one": one.name, "other": other.name}
    if rng.random() < 0.4:
        said = word if rng.random() < 0.5 else pick(rng, tuple(_SEEN))
        question = worded(rng, ("Is the {one} {said} the {other}?",), said=said, **words)
        yes = "yes" if said == word else "no"
        return Turn("relation", question, f"Seen from the {other.name}, the {one.name} is {_SEEN[word]}, so {yes}.")
    question = worded(
        rng,
        (
            "Where is the {one} relative to the {other}?",
            "Where is the {one}, seen from the {other}?",
            "Is the {one} to the left or right of, above or below the {other}?",
        ),
        **words,
    )
    return Turn("relation", question, f"Seen from the {other.name}, the {one.name} is {_SEEN[word]}.")


def _relation_word(one: Thing, other: Thing) -> str | None:
    dx = one.box.centre[0] - other.box.centre[0]
    dy = one.box.centre[1] - other.box.centre[1]
    if abs(dx) > 1.8 * abs(dy):
        return "to the right of" if dx > 0 else "to the left of"
    if abs(dy) > 1.8 * abs(dx):
        return "below" if dy > 0 else "above"
    return None


def box_of(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """In grounding marks, thousandths of the picture's sides."""
    unique = scene.unique()
    if not unique:
        return None
    thing = unique[int(rng.integers(len(unique)))]
    question = worded(
        rng,
        (
            "Give the box of the {name}.",
            "Find the {name}.",
            "Detect the {name}.",
            "Give the bounding box of the {name}.",
            "Draw a box around the {name}.",
        ),
        name=thing.name,
    )
    return Turn("box", question, marked(thing.name, thing.box, scene.width, scene.height), (thing.box,))


def all_boxes(rng: np.random.Generator, scene: Scene) -> Turn | None:
    """Everything in the picture with its box, from left to right."""
    question = worded(
        rng,
        (
            "Find everything.",
            "Detect all objects.",
            "Give the boxes of all objects.",
            "Draw a box around everything.",
            "List all objects with their boxes.",
        ),
    )
    return Turn(
        "all boxes",
        question,
        "".join(marked(thing.name, thing.box, scene.width, scene.height) for thing in scene.things),
        tuple(thing.box for thing in scene.things),
    )


def marked(name: str, box: Box, width: int, height: int) -> str:
    """The way Qwen2-VL writes a box, to the nearest fiftieth: digits that nobody can know are noise to learn."""
    left, right = (_fiftieths(x / width) for x in (box.left, box.right))
    top, bottom = (_fiftieths(y / height) for y in (box.top, box.bottom))
    return f"<|object_ref_start|>the {name}<|object_ref_end|><|box_start|>({left},{top}),({right},{bottom})<|box_end|>"


def _fiftieths(share: float) -> int:
    """In thousandths."""
    return 20 * min(49, max(0, round(50 * share)))


# With their weights. Boxes have the most words to an answer and need no more questions than others.
ASKS: tuple[tuple[Ask, float], ...] = (
    (describe, 1.0),
    (in_detail, 0.6),
    (how_many, 1.4),
    (is_there, 1.2),
    (colour_of, 0.9),
    (shape_of, 0.9),
    (where_is, 1.0),
    (relation, 1.2),
    (box_of, 1.3),
    (all_boxes, 0.4),
)
# To learn from: more answers that say everything there is, and more of what takes the longest to learn.
_MORE: dict[Ask, float] = {
    in_detail: 1.5,
    all_boxes: 1.0,
    is_there: 1.5,
    how_many: 3.0,
    where_is: 1.3,
    relation: 3.0,
    box_of: 2.5,
}
TAUGHT_ASKS = tuple((ask, _MORE.get(ask, weight)) for ask, weight in ASKS)
# With more of what one thing alone can answer.
EASY_ASKS: tuple[tuple[Ask, float], ...] = (
    (describe, 1.0),
    (in_detail, 1.5),
    (how_many, 0.8),
    (is_there, 2.0),
    (colour_of, 1.0),
    (shape_of, 1.0),
    (where_is, 1.5),
    (relation, 1.0),
    (box_of, 1.5),
)
