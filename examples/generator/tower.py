"""`python -m examples.generator.tower START OUT`: teach a demo model's vision tower what lies where.

Published models begin with a vision tower that has been trained by itself, and for the same reason: what an answer
says back to the tower through an untrained language model is mostly noise. Here the features of a thing or a character,
taken together as an answer would attend to them, are to tell what it is; and each patch of a picture is to tell what it
belongs to, its colour, where its edges are in the picture, and where it is itself: a language model finds the place of
a token by its rotary angles alone, which tell it how to attend and nothing that it could say. The heads that tell it
are thrown away.
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

import numpy as np
import numpy.typing as npt

from examples.generator.drawing import SHAPES, Box
from examples.generator.scenes import COLOURS, outdoor_scene, shapes_scene
from examples.generator.words import text_picture
from qvl.messages import Image
from qvl.processing.image import ImageOptions, image_vision

BATCH = 16
STEPS = 3000
LEARNING_RATE = 1e-3
_WARMUP = 100
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("", *SHAPES, "house", "tree", "car", "sun", "cloud", *CHARACTERS)  # "": the ground
COLOUR_NAMES = ("", *COLOURS)


@dataclass(frozen=True)
class Piece:
    """Something that patches belong to."""

    kind: str
    colour: str | None
    box: Box


@dataclass(frozen=True)
class Batch:
    """Pictures and what their patches are to tell, in the order of the patches.

    patches: float32 [patches, 1176]. kinds, colours: int64 [patches]. edges: float32 [patches, 4], where the left, top,
    right and bottom edge of its thing are in the picture, from 0 to 1; has_edges: float32 [patches, 1]. centres:
    float32 [patches, 2], where the patch is. pieces: int64 [pieces], their kinds; boxes: float32 [pieces, 4], their edges.
    shares: float32 [pieces, tokens], of the tokens in a piece; each row sums to 1.
    """

    patches: npt.NDArray[np.float32]
    grids: tuple[tuple[int, int, int], ...]
    kinds: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float32]
    has_edges: npt.NDArray[np.float32]
    centres: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    pieces: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]


def batch(options: ImageOptions, number: int, size: int = BATCH) -> Batch:
    """Batch `number`, of pictures that are in no split."""
    rng = np.random.default_rng([*b"tower", number])
    visions, told, names, tokens, boxes = [], [], [], [], []
    for _ in range(size):
        manner = rng.random()
        if manner < 0.4:
            text = text_picture(rng)
            image = text.image
            pieces = [Piece(character, text.colour, box) for character, box in zip(text.text, text.boxes, strict=True)]
        else:
            scene = shapes_scene(rng) if manner < 0.85 else outdoor_scene(rng)
            image = scene.draw()
            pieces = [Piece(thing.kind, thing.colour, thing.box) for thing in scene.things]
        vision = image_vision(Image(image), options)
        visions.append(vision)
        told.append(labels(pieces, image.size, vision.grid_thw))
        sides = np.asarray([*image.size, *image.size])
        boxes += [(piece.box.left, piece.box.top, piece.box.right, piece.box.bottom) / sides for piece in pieces]
        names += [KINDS.index(piece.kind) for piece in pieces]
        tokens.append(shares(pieces, image.size, vision.grid_thw))
    kinds, colours, edges, has_edges, centres = (np.concatenate(part) for part in zip(*told, strict=True))
    patches = np.concatenate([vision.patches for vision in visions])
    together = np.zeros((len(names), len(patches) // 4), np.float32)
    row = column = 0
    for part in tokens:
        together[row : row + part.shape[0], column : column + part.shape[1]] = part
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
        np.asarray(names),
        together,
    )


def batches(options: ImageOptions, count: int, ahead: int = 8) -> Iterator[Batch]:
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


def shares(pieces: Sequence[Piece], size: tuple[int, int], grid: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """How much of each piece each token covers, [pieces, tokens]. size: (width, height) of the picture."""
    rows, columns = grid[1] // 2, grid[2] // 2
    made = np.zeros((len(pieces), rows * columns), np.float32)
    for number, piece in enumerate(pieces):
        box = piece.box
        across = _covered(box.left / size[0], box.right / size[0], columns)
        down = _covered(box.top / size[1], box.bottom / size[1], rows)
        covered = np.outer(down, across).reshape(-1)
        made[number] = covered / covered.sum()
    return made


def _covered(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    """How much of [low, high] is in each of `count` equal parts of [0, 1]."""
    edges = np.linspace(0, 1, count + 1)
    return np.maximum(0, np.minimum(edges[1:], high) - np.maximum(edges[:-1], low))


def teach(start: Path, out: Path, steps: int, loudness: float) -> None:
    """Train, and write the model with the tower it then has.

    loudness: root mean square that the features are scaled to in the end, so that they begin as loud as words are.
    """
    import paddle
    from paddle import nn

    from examples.generator.telling import Telling
    from qvl.runtime.engine import Engine

    engine = Engine.load("demo", model=start)
    visual = engine.model.visual
    for parameter in visual.parameters():
        parameter.stop_gradient = False
    paddle.seed(0)
    telling = Telling(engine.config.hidden_size, loudness)
    cosine = paddle.optimizer.lr.CosineAnnealingDecay(LEARNING_RATE, steps - _WARMUP)
    rate = paddle.optimizer.lr.LinearWarmup(cosine, _WARMUP, 0.0, LEARNING_RATE)
    adam = paddle.optimizer.AdamW(
        rate,
        beta2=0.99,
        weight_decay=0.02,
        parameters=[*visual.parameters(), *telling.parameters()],
        grad_clip=nn.ClipGradByGlobalNorm(1.0),
    )
    begun, lately = time.perf_counter(), np.zeros(4)
    for step, shown in enumerate(batches(engine.processor.image_options, steps), 1):
        features = visual(paddle.to_tensor(shown.patches), list(shown.grids))
        loss, figures = telling(features, shown)
        loss.backward()
        adam.step()
        adam.clear_grad()
        rate.step()
        lately += 0.02 * (np.asarray(figures) - lately)
        if step % 100 == 0:
            mean, things, characters, off = lately / (1 - 0.98**step)
            print(
                f"{step}/{steps} loss {mean:.3f}; right: things {things:.3f}, characters {characters:.3f}; "
                f"boxes off by {off:.4f}; {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
    with paddle.no_grad():
        features = visual(paddle.to_tensor(shown.patches), list(shown.grids))
        factor = loudness / float(features.square().mean().sqrt())
        last = visual.merger.mlp[2]
        for parameter in (last.weight, last.bias):
            parameter.set_value(parameter * factor)
    engine.save(out, dtype="bfloat16")


def main(arguments: Sequence[str] | None = None) -> None:
    from examples.generator.start import STREAM

    parser = argparse.ArgumentParser(prog="python -m examples.generator.tower", description=__doc__)
    parser.add_argument("start", type=Path, metavar="START", help="the folder of a model")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    teach(options.start, options.out, options.steps, STREAM)


if __name__ == "__main__":
    main()
