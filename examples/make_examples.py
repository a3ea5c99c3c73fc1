"""Makes the pictures, the clip and the conversations in this folder: `python -m examples.make_examples [FOLDER]`.

They are drawn by the generator that the demo model learnt from, but are not among what it learnt. Needs the training
dependencies, which bring the fonts and PyAV.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from examples.generator.clips import write_clip
from examples.generator.drawing import Box
from examples.generator.scenes import COLOURS, Colour, Scene, Thing
from examples.generator.words import font

_CREAM: Colour = (244, 240, 230)


def thing(kind: str, colour: str, size: str | None, centre: tuple[float, float], side: float) -> Thing:
    """A shape of `side` pixels around a point."""
    (x, y), half = centre, side / 2
    return Thing(kind, colour, size, Box(x - half, y - half, x + half, y + half), COLOURS[colour])


def plain(width: int, height: int) -> Image.Image:
    """A ground of one pale colour."""
    return Image.new("RGB", (width, height), _CREAM)


def shapes() -> Scene:
    """A large red circle, a small blue square and a small green star, 640x480."""
    things = (
        thing("circle", "red", "large", (156, 275), 251),
        thing("square", "blue", "small", (423, 115), 168),
        thing("star", "green", "small", (492, 361), 160),
    )
    return Scene(640, 480, plain(640, 480), things)


def before(scene: Scene) -> Scene:
    """The same without the square."""
    return replace(scene, things=tuple(thing for thing in scene.things if thing.kind != "square"))


def landscape() -> Scene:
    """The sun, a red house, a tree and a blue car, 768x512."""
    ground = np.empty((512, 768, 3), np.uint8)
    ground[:280], ground[280:] = (150, 205, 240), (120, 185, 95)
    things = (
        Thing("sun", None, None, Box(521, 30, 671, 180), (255, 205, 30)),
        Thing("house", "red", None, Box(78, 190, 298, 410), COLOURS["red"]),
        Thing("tree", None, None, Box(391, 200, 521, 362), (40, 120, 55)),
        Thing("car", "blue", None, Box(529, 340, 719, 454), COLOURS["blue"]),
    )
    return Scene(768, 512, Image.fromarray(ground), things, outdoors=True)


def word() -> Image.Image:
    """HELLO in blue, 400x240."""
    picture = plain(400, 240)
    ImageDraw.Draw(picture).text(
        (200, 120), "HELLO", fill=COLOURS["blue"], font=font("DejaVuSans-Bold", 84), anchor="mm"
    )
    return picture


def moving() -> tuple[Image.Image, ...]:
    """Three seconds of 160x120: a purple star goes from left to right below a green square that stands still."""
    square = thing("square", "green", None, (80, 30), 40)
    ground = plain(160, 120)
    frames = []
    for index in range(24):
        star = thing("star", "purple", None, (26 + 108 * index / 23, 85), 42)
        frames.append(Scene(160, 120, ground, (star, square)).draw())
    return tuple(frames)


def conversation() -> list[dict[str, object]]:
    """Two turns about two pictures, for `qvl infer --messages`, run from the root of the repository."""
    return [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "examples/shapes.png", "max_pixels": 200704},
                {"type": "text", "text": "How many shapes are there?"},
            ],
        },
        {"role": "assistant", "content": "There are 3 shapes."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "examples/scene.jpg"},
                {"type": "text", "text": "Is there a tree in the second picture?"},
            ],
        },
    ]


def finetune() -> list[dict[str, object]]:
    """Conversations that teach a word the model does not know: a red circle is called a zorb."""
    samples = [
        (["shapes.png"], ["<image>What is a zorb?", "A zorb is a red circle."]),
        (["shapes.png"], ["<image>Is there a zorb?", "Yes, there is a zorb."]),
        (["shapes.png"], ["<image>What is the red circle called?", "The red circle is a zorb."]),
        (["shapes.png"], ["<image>Where is the zorb?", "The zorb is on the left."]),
        (["scene.jpg"], ["<image>Is there a zorb?", "No, there is no zorb."]),
        (["scene.jpg"], ["<image>What is a zorb?", "A zorb is a red circle."]),
        (
            ["shapes.png"],
            [
                "<image>Name the red circle.",
                "The red circle is a zorb.",
                "What colour is the zorb?",
                "The zorb is red.",
            ],
        ),
        (
            ["shapes.png", "scene.jpg"],
            ["The first picture: <image>The second: <image>Which picture shows a zorb?", "The first picture."],
        ),
    ]
    return [
        {
            "messages": [
                {"role": "assistant" if index % 2 else "user", "content": content}
                for index, content in enumerate(turns)
            ],
            "images": pictures,
        }
        for pictures, turns in samples
    ]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shapes().draw().save(folder / "shapes.png", optimize=True)
    before(shapes()).draw().save(folder / "before.png", optimize=True)
    landscape().draw().save(folder / "scene.jpg", quality=88)
    word().save(folder / "word.png", optimize=True)
    write_clip(folder / "moving.mp4", moving())
    for name, content in (("conversation", conversation()), ("finetune", finetune())):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
