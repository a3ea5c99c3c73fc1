"""Makes the pictures, the clip and the conversations in this folder: `python examples/make_examples.py [FOLDER]`.

Needs Pillow, NumPy and PyAV. Everything is drawn here, so nothing has a licence but the project's own.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_FINER = 4  # drawn this many times larger, then reduced, which smooths the edges
Point = tuple[float, float]


class Canvas:
    """A drawing in the final picture's coordinates."""

    def __init__(self, width: int, height: int, background: str) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _FINER, height * _FINER), background)
        self.draw = ImageDraw.Draw(self.image)

    def ellipse(self, centre: Point, radii: Point, colour: str) -> None:
        (x, y), (a, b) = centre, radii
        self.draw.ellipse([_FINER * value for value in (x - a, y - b, x + a, y + b)], fill=colour)

    def polygon(self, points: list[Point], colour: str) -> None:
        self.draw.polygon([(x * _FINER, y * _FINER) for x, y in points], fill=colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def finish(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def star(centre: Point, radius: float, spikes: int = 5) -> list[Point]:
    """The corners of a star that stands upright."""
    corners = []
    for index in range(2 * spikes):
        reach = radius if index % 2 == 0 else radius * 0.42
        angle = math.pi * index / spikes - math.pi / 2
        corners.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return corners


def shapes() -> Image.Image:
    """Six shapes of six colours on a light ground, 640x480: two rows of three."""
    canvas = Canvas(640, 480, "#f4f1ea")
    canvas.ellipse((120, 130), (72, 72), "#d62828")  # red circle
    canvas.rectangle(254, 66, 386, 198, "#1d5fbf")  # blue square
    canvas.polygon([(520, 56), (600, 200), (440, 200)], "#2a9d4a")  # green triangle
    canvas.polygon(star((120, 350), 84), "#f2b705")  # yellow star
    canvas.ellipse((320, 350), (100, 56), "#7b2cbf")  # purple ellipse
    canvas.polygon([(520, 262), (584, 350), (520, 438), (456, 350)], "#f77f00")  # orange diamond
    return canvas.finish()


def scene() -> Image.Image:
    """A landscape, 768x512: a house with a red roof, a tree to its right, a sun, two clouds and hills."""
    rng = np.random.default_rng(7)
    canvas = Canvas(768, 512, "#8ecae6")
    canvas.ellipse((640, 92), (46, 46), "#ffd60a")
    for x, y in ((150, 90), (400, 64)):
        for offset, radius in ((-38, 24), (0, 34), (40, 26)):
            canvas.ellipse((x + offset, y), (radius * 1.3, radius), "#ffffff")
    canvas.ellipse((180, 470), (380, 170), "#74a857")
    canvas.ellipse((640, 490), (360, 160), "#5f9348")
    canvas.rectangle(0, 420, 768, 512, "#4f7f3a")
    canvas.rectangle(210, 270, 400, 430, "#e9d8a6")
    canvas.polygon([(190, 275), (305, 185), (420, 275)], "#ae2012")
    canvas.rectangle(284, 350, 330, 430, "#6f4518")
    for x in (232, 342):
        canvas.rectangle(x, 300, x + 38, 338, "#bde0fe")
        canvas.rectangle(x + 17, 300, x + 21, 338, "#6f4518")
    canvas.rectangle(548, 320, 574, 436, "#6f4518")
    for x, y, radius in ((561, 268, 66), (520, 300, 44), (602, 300, 44)):
        canvas.ellipse((x, y), (radius, radius), "#2d6a4f")
    for x, y in zip(rng.uniform(10, 758, 60), rng.uniform(436, 504, 60), strict=True):
        canvas.ellipse((float(x), float(y)), (2.5, 2.5), str(rng.choice(["#ffffff", "#ffd60a", "#ff6b6b"])))
    # A little grain, so that it compresses as a photograph does.
    pixels = np.asarray(canvas.finish().filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8))


def moving(path: Path, seconds: float = 2.5, fps: int = 12) -> None:
    """A clip of 320x240: a red ball crosses from left to right and bounces, past a blue box that stands still."""
    frames = round(seconds * fps)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        # The same bytes on every run: one thread, no version strings, and none of x264's look-ahead, which varies.
        still = "rc-lookahead=0:sync-lookahead=0:mbtree=0"
        stream.options = {"crf": "28", "preset": "slow", "threads": "1", "x264-params": still}
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        container.flags |= av.container.core.Flags.bitexact.value
        for index in range(frames):
            progress = index / (frames - 1)
            canvas = Canvas(320, 240, "#f4f1ea")
            canvas.rectangle(0, 200, 320, 240, "#8d99ae")
            canvas.rectangle(250, 140, 300, 200, "#1d5fbf")
            canvas.ellipse(
                (30 + 200 * progress, 174 - 110 * abs(math.sin(2.5 * math.pi * progress))), (26, 26), "#d62828"
            )
            for packet in stream.encode(av.VideoFrame.from_image(canvas.finish())):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def conversation() -> list[dict[str, object]]:
    """Two turns about two pictures, for `qvl infer --messages`, run from the root of the repository."""
    return [
        {"role": "system", "content": "You answer in one short sentence."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "examples/shapes.png", "max_pixels": 200704},
                {"type": "text", "text": "How many shapes are there?"},
            ],
        },
        {"role": "assistant", "content": "There are six shapes."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And what stands beside the house in"},
                {"type": "image", "image": "examples/scene.jpg"},
                {"type": "text", "text": "?"},
            ],
        },
    ]


def finetune() -> list[dict[str, object]]:
    """Conversations to learn from: the pictures, and what user and assistant say in turn."""
    samples = [
        (["shapes.png"], ["<image>How many shapes are there?", "There are six shapes."]),
        (["shapes.png"], ["<image>What colour is the star?", "The star is yellow."]),
        (
            ["shapes.png"],
            [
                "<image>Which shape is to the right of the red circle?",
                "A blue square.",
                "And below that square?",
                "A purple ellipse.",
            ],
        ),
        (
            ["shapes.png"],
            [
                "<image>Name the shapes of the bottom row from left to right.",
                "A yellow star, a purple ellipse and an orange diamond.",
            ],
        ),
        (["scene.jpg"], ["<image>What stands to the right of the house?", "A tree."]),
        (["scene.jpg"], ["<image>What colour is the roof of the house?", "The roof is red."]),
        (
            ["scene.jpg"],
            [
                "<image>How many clouds are in the sky?",
                "Two clouds.",
                "Is the sun shining?",
                "Yes, the sun is at the top right.",
            ],
        ),
        (
            ["shapes.png", "scene.jpg"],
            ["The first picture: <image>The second: <image>In which of them is a house?", "In the second one."],
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
    shapes().save(folder / "shapes.png", optimize=True)
    scene().save(folder / "scene.jpg", quality=88)
    moving(folder / "moving.mp4")
    for name, content in (("conversation", conversation()), ("finetune", finetune())):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
