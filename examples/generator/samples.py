"""A sample: pictures or a clip, and a conversation about them. Its split and number say all about it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.generator.beyond import beyond, greeting
from examples.generator.clips import Clip, clip
from examples.generator.pairs import pair
from examples.generator.questions import ASKS, EASY_ASKS, TAUGHT_ASKS, Ask, describe, in_detail
from examples.generator.scenes import Scene, outdoor_scene, shapes_scene
from examples.generator.turns import Turn, pick
from examples.generator.words import read, text_colour, text_described, text_picture

FEW, TRAIN = "few", "train"
TURNS = 3  # about one picture: what has been said tells of it as well, and of later questions less is learnt
# Up to which chance a sample is of shapes, outdoors, text and pairs; up to 0.97 it is a clip, the rest is beyond.
_SHARES = (0.42, 0.50, 0.72, 0.85)
_TAUGHT_SHARES = (0.345, 0.45, 0.615, 0.79)
_BEYOND = 0.06  # of conversations about a picture, how many have a question that cannot be answered
_TAUGHT_BEYOND = 0.1
_ALIKE = 0.4  # of what is learnt from, how often things share a colour or a kind: most mistakes take one for the other


@dataclass(frozen=True)
class Sample:
    """images lie before the first question. clip: in their stead."""

    images: tuple[Image.Image, ...]
    clip: Clip | None
    turns: tuple[Turn, ...]


def sample(split: str, number: int, *, turns: int = TURNS) -> Sample:
    """Sample `number` of a split. turns: at most so many questions about one picture.

    "few" is easier than the others, to begin with: it has up to three things or letters. "train" asks more often for
    all that is there, and for what takes the longest to learn, than those by which the model is judged, and what it
    shows is more often alike.
    """
    rng = np.random.default_rng([zlib.crc32(split.encode()), number])
    kind = rng.random()
    if split == FEW:
        if kind < 0.36:
            return _about_scene(rng, shapes_scene(rng, most=2), turns, EASY_ASKS)
        if kind < 0.68:
            return _about_scene(rng, shapes_scene(rng, most=3), 1, ((in_detail, 1.0),))
        return _about_text(rng, 1, longest=3)
    taught = split == TRAIN
    alike = _ALIKE if taught else 0.0
    asks = TAUGHT_ASKS if taught else ASKS
    scenes, outdoors, texts, pairs = _TAUGHT_SHARES if taught else _SHARES
    unanswerable = _TAUGHT_BEYOND if taught else _BEYOND
    if kind < scenes:
        return _about_scene(rng, shapes_scene(rng, alike=alike), turns, asks, unanswerable)
    if kind < outdoors:
        return _about_scene(rng, outdoor_scene(rng), turns, asks, unanswerable)
    if kind < texts:
        return _about_text(rng, turns)
    if kind < pairs:
        (first, second), asked = pair(rng, changed=0.75, alike=alike) if taught else pair(rng)
        return Sample((first.draw(), second.draw()), None, tuple(asked[:turns]))
    if kind < 0.97:
        made = clip(rng, moving=0.55, turning=0.3, alike=alike) if taught else clip(rng)
        of_clip = list(made.turns)
        if taught and len(of_clip) > 1:  # whether something moves, the last, is the hardest
            of_clip = [pick(rng, of_clip[:-1]), of_clip[-1]]
        return Sample((), made, _some(rng, of_clip, min(2, turns)))
    return Sample((), None, (beyond(rng) if rng.random() < 0.6 else greeting(rng),))


def _about_scene(
    rng: np.random.Generator,
    scene: Scene,
    turns: int,
    asks: tuple[tuple[Ask, float], ...] = ASKS,
    unanswerable: float = _BEYOND,
) -> Sample:
    weights = np.asarray([weight for _, weight in asks])
    # Some are drawn twice: two boxes or two counts in one conversation are as likely as two kinds of question.
    asked: list[Turn] = []
    for index in rng.choice(len(asks), size=5 * TURNS, p=weights / weights.sum()):
        turn = asks[index][0](rng, scene)
        if turn is not None and all(turn.answer != other.answer for other in asked):
            asked.append(turn)
        if len(asked) == turns:
            break
    if not asked and (turn := describe(rng, scene)) is not None:
        asked.append(turn)
    if rng.random() < unanswerable:
        # Anywhere in the conversation: a model that has met these last alone answers a first one as if it were another.
        asked[int(rng.integers(len(asked)))] = beyond(rng)
    return Sample((scene.draw(),), None, tuple(asked))


def _about_text(rng: np.random.Generator, turns: int, longest: int | None = None) -> Sample:
    made = text_picture(rng, longest)
    asked = [
        read(rng, made.text),
        text_described(rng, made.text, made.colour),
        text_colour(rng, made.text, made.colour),
    ]
    return Sample((made.image,), None, _some(rng, asked, min(2, turns)))


def _some(rng: np.random.Generator, turns: list[Turn], count: int) -> tuple[Turn, ...]:
    order = rng.permutation(len(turns))[:count]
    return tuple(turns[int(index)] for index in order)
