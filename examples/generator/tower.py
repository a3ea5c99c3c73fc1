"""`python -m examples.generator.tower START OUT`: teach a demo model's vision tower what lies where.

Published models begin with a vision tower that has been trained by itself, and for the same reason: what an answer
says back to the tower through an untrained language model is mostly noise. Here the features of a thing or a character,
taken together as an answer would attend to them, are to tell what it is, its colour, its size and its place, on a
picture or two frames of a clip. They also tell where its edges are: a language model finds the place of a token by its
rotary angles alone, which tell it how to attend and nothing that it could say. Each patch tells what it belongs to and
where it is.

What is told in words is told by the rows that the language model has for them: a thing looks like the words for it, and
can be found by its name (`start.py`). To all features is added, in the end, the row of a picture's token, by which a
name finds a picture before it finds itself. The other heads are thrown away.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from examples.generator.clips import clip
from examples.generator.drawing import SHAPES, Box
from examples.generator.questions import nearest_place
from examples.generator.scenes import COLOURS, outdoor_scene, shapes_scene
from examples.generator.words import text_picture
from qvl.messages import Image, Video
from qvl.processing.image import ImageOptions, image_vision
from qvl.processing.prompt import Vision
from qvl.processing.video import VideoOptions, frame_indices, video_vision

if TYPE_CHECKING:
    from qvl.processing.tokenizer import Tokenizer

BATCH = 16
STEPS = 6500
LEARNING_RATE = 1.5e-3
_WARMUP = 100
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
THINGS = (*SHAPES, "house", "tree", "car", "sun", "cloud")
KINDS = ("", *THINGS, *CHARACTERS)  # "": the ground
COLOUR_NAMES = ("", *COLOURS)
# What there is to say of a piece, a word of each group or none.
GROUPS = (KINDS[1:], tuple(COLOURS), ("small", "large"), ("top", "bottom"), ("left", "right"))
BINS = 50  # of the sides of a picture, in which edges are; as fine as answers are


@dataclass(frozen=True)
class Piece:
    """Something that patches belong to."""

    kind: str
    colour: str | None
    box: Box
    size: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pictures and what their patches are to tell, in the order of the patches.

    patches: float32 [patches, 1176]. kinds, colours: int64 [patches]. edges: float32 [patches, 4], where the left, top,
    right and bottom edge of its thing are in the picture, from 0 to 1; has_edges: float32 [patches, 1]. centres:
    float32 [patches, 2], where the patch is. words: int64 [pieces, groups], counted from 1, with 0 for none; boxes:
    float32 [pieces, 4], their edges. shares: float32 [pieces, tokens], of the tokens in a piece, where most of it is
    more than that; each row sums to 1.
    """

    patches: npt.NDArray[np.float32]
    grids: tuple[tuple[int, int, int], ...]
    kinds: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float32]
    has_edges: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    words: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]


def batch(options: tuple[ImageOptions, VideoOptions], number: int, size: int = BATCH) -> Batch:
    """Batch `number`, of pictures that are in no split."""
    rng = np.random.default_rng([*b"tower", number])
    visions, told, words, tokens, boxes = [], [], [], [], []
    for _ in range(size):
        vision, pieces = _shown(rng, options)
        frame = (vision.size[1], vision.size[0])
        visions.append(vision)
        told.append(labels(pieces, frame, vision.grid_thw))
        sides = np.asarray([*frame, *frame])
        boxes += [(piece.box.left, piece.box.top, piece.box.right, piece.box.bottom) / sides for piece in pieces]
        words += [words_for(piece, frame) for piece in pieces]
        tokens.append(shares(pieces, frame, vision.grid_thw))
    kinds, colours, edges, has_edges, centres = (np.concatenate(part) for part in zip(*told, strict=True))
    patches = np.concatenate([vision.patches for vision in visions])
    of_all = np.zeros((len(words), len(patches) // 4), np.float32)
    row = column = 0
    for part in tokens:
        of_all[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    grids = tuple(vision.grid_thw for vision in visions)
    return Batch(
        patches,
        grids,
        kinds,
        colours,
        edges,
        has_edges,
        centres,
        np.asarray(boxes, np.float32),
        np.asarray(words),
        of_all,
    )


def _shown(rng: np.random.Generator, options: tuple[ImageOptions, VideoOptions]) -> tuple[Vision, list[Piece]]:
    of_pictures, of_clips = options
    manner = rng.random()
    if manner < 0.5:
        text = text_picture(rng)
        pieces = [Piece(character, text.colour, box) for character, box in zip(text.text, text.boxes, strict=True)]
        return image_vision(Image(text.image), of_pictures), pieces
    if manner < 0.63:
        scenes = clip(rng).scenes
        frames = frame_indices(0, len(scenes) - 1, of_clips.max_frames)
        number = 2 * int(rng.integers(len(frames) // 2))
        pair = [scenes[frame] for frame in frames[number : number + 2]]
        vision = video_vision(Video([scene.draw() for scene in pair]), of_clips, of_pictures)
        # Those that stand still may share a name; the one that moves has its own.
        both = [sorted(scene.things, key=lambda thing: (thing.name, thing.box.left)) for scene in pair]
        return vision, [Piece(one.kind, one.colour, one.box.between(two.box)) for one, two in zip(*both, strict=True)]
    scene = shapes_scene(rng) if manner < 0.91 else outdoor_scene(rng)
    pieces = [Piece(thing.kind, thing.colour, thing.box, thing.size) for thing in scene.things]
    return image_vision(Image(scene.draw()), of_pictures), pieces


def batches(options: tuple[ImageOptions, VideoOptions], count: int, ahead: int = 8) -> Iterator[Batch]:
    """The first batches, drawn by two processes, at most so many of them ahead of what was taken."""
    room = threading.Semaphore(ahead)

    def numbers() -> Iterator[int]:
        """Asked for by a thread of the pool, which would have everything drawn at once."""
        for number in range(count):
            room.acquire()
            yield number

    # Not by a fork: Paddle's threads may be running.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for made in pool.imap(partial(batch, options), numbers()):
            room.release()
            yield made


def labels(
    pieces: Sequence[Piece], size: tuple[int, int], grid: tuple[int, int, int]
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
]:
    """What each patch is to tell: that of the piece at its centre. size: (width, height) of the picture."""
    _, rows, columns = grid
    # Patches come two by two, as the merger takes them.
    places = np.arange(rows * columns).reshape(rows // 2, columns // 2, 2, 2)
    across = np.arange(columns).reshape(1, columns // 2, 1, 2)
    down = np.arange(rows).reshape(rows // 2, 1, 2, 1)
    x = (np.broadcast_to(across, places.shape).reshape(-1) + 0.5) / columns
    y = (np.broadcast_to(down, places.shape).reshape(-1) + 0.5) / rows
    kinds, colours = np.zeros(x.size, np.int64), np.zeros(x.size, np.int64)
    edges, has_edges = np.zeros((x.size, 4), np.float32), np.zeros((x.size, 1), np.float32)
    for piece in pieces:
        left, right = piece.box.left / size[0], piece.box.right / size[0]
        top, bottom = piece.box.top / size[1], piece.box.bottom / size[1]
        inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        kinds[inside] = KINDS.index(piece.kind)
        colours[inside] = COLOUR_NAMES.index(piece.colour or "")
        edges[inside] = left, top, right, bottom
        has_edges[inside] = 1
    return kinds, colours, edges, has_edges, np.stack([x, y], axis=1).astype(np.float32)


def words_for(piece: Piece, size: tuple[int, int]) -> tuple[int, ...]:
    """The number of its word in each of GROUPS, from 1; 0 for none. size: (width, height) of the picture."""
    place = nearest_place(piece.box, *size)
    said = {piece.kind, piece.colour, piece.size, *place.split()}
    return tuple(next((n for n, word in enumerate(group, 1) if word in said), 0) for group in GROUPS)


def shares(pieces: Sequence[Piece], size: tuple[int, int], grid: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """How much of each piece each token covers, squared, [pieces, tokens]: an answer looks at where most of it is.

    size: (width, height) of the picture.
    """
    rows, columns = grid[1] // 2, grid[2] // 2
    made = np.zeros((len(pieces), rows * columns), np.float32)
    for number, piece in enumerate(pieces):
        box = piece.box
        across = _covered(box.left / size[0], box.right / size[0], columns)
        down = _covered(box.top / size[1], box.bottom / size[1], rows)
        covered = np.outer(down, across).reshape(-1) ** 2
        made[number] = covered / covered.sum()
    return made


def _covered(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    """How much of [low, high] is in each of `count` equal parts of [0, 1]."""
    edges = np.linspace(0, 1, count + 1)
    return np.maximum(0, np.minimum(edges[1:], high) - np.maximum(edges[:-1], low))


def teach(start: Path, out: Path, steps: int, loudness: float) -> None:
    """Train, and write the model with the tower it then has. Products are rounded as in `qvl finetune`, where they can.

    loudness: root mean square that the features have in the end, before the row of a picture's token is added.
    """
    import paddle
    from paddle import nn

    from examples.generator.telling import Telling
    from qvl.ops.products import rounding
    from qvl.runtime.engine import Engine

    engine = Engine.load("demo", model=start)
    visual = engine.model.visual
    rows = engine.model.model.embed_tokens.weight
    for parameter in visual.parameters():
        parameter.stop_gradient = False
    paddle.seed(0)
    telling = Telling(rows[paddle.to_tensor(tokens_of_words(engine.processor.tokenizer))])
    cosine = paddle.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, steps - _WARMUP)
    rate = paddle.optimizer.lr.LinearWarmup(cosine, _WARMUP, 0.0, LEARNING_RATE)
    adam = paddle.optimizer.AdamW(
        rate,
        beta2=0.99,
        weight_decay=0.02,
        parameters=[*visual.parameters(), *telling.parameters()],
        grad_clip=nn.ClipGradByGlobalNorm(1.0),
    )
    begun, lately = time.perf_counter(), np.ones(4)
    for step, shown in enumerate(batches((engine.processor.image_options, engine.processor.video_options), steps), 1):
        with rounding():
            features = visual(paddle.to_tensor(shown.patches), list(shown.grids))
            loss, figures = telling(features, shown)
            loss.backward()
        adam.step()
        adam.clear_grad()
        rate.step()
        for number, figure in enumerate(figures):
            lately[number] += 0.02 * (figure - lately[number]) if figure is not None else 0.0
        if step % 100 == 0:
            mean, things, characters, off = lately
            print(
                f"{step}/{steps} loss {mean:.3f}; right: things {things:.3f}, characters {characters:.3f}; "
                f"boxes off by {off:.4f}; {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
    with paddle.no_grad():
        features = visual(paddle.to_tensor(shown.patches), list(shown.grids))
        factor = loudness / features.square().mean().sqrt()
        last = visual.merger.mlp[2]
        last.weight.set_value(last.weight * factor)
        last.bias.set_value(last.bias * factor + rows[engine.config.image_token_id])
    engine.save(out, dtype="bfloat16")


def tokens_of_words(tokenizer: Tokenizer) -> list[int]:
    """Of all GROUPS, the way answers have them: characters stand behind a quotation mark and words behind a space.

    Raises ValueError when a word is not one token.
    """
    spelled = [word if word in CHARACTERS else f" {word}" for group in GROUPS for word in group]
    tokens = [tokenizer.encode(word) for word in spelled]
    if pieces := [word for word, ids in zip(spelled, tokens, strict=True) if len(ids) != 1]:
        raise ValueError(f"more than a token each: {pieces}")
    return [token for (token,) in tokens]


def main(arguments: Sequence[str] | None = None) -> None:
    from examples.generator.start import STREAM

    parser = argparse.ArgumentParser(prog="python -m examples.generator.tower", description=__doc__)
    parser.add_argument("start", type=Path, metavar="START", help="the folder of a model")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    teach(options.start, options.out, options.steps, 1.5 * STREAM)


if __name__ == "__main__":
    main()
