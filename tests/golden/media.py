"""Makes the pictures and clips of the golden cases from formulas. Run by hand: `python -m tests.golden.media`.

The files are kept in the repository, since encoders differ from version to version; PyAV 18.1 wrote the clips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

MEDIA = Path(__file__).with_name("media")
CLIP_FPS = 10

Pixels = npt.NDArray[np.uint8]


def pattern(height: int, width: int, phase: int = 0) -> Pixels:
    """Waves, a ramp and a filled circle, uint8 [height, width, 3]: smooth parts, edges and fine detail."""
    row, column = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127.5 + 127.5 * np.sin((column + 3 * phase) / (4 + phase % 5) + row / 17)
    green = 255 * row / max(height - 1, 1)
    blue = (row * 7 + column * 3 + 31 * phase) % 256
    picture = np.stack([red, green, blue], axis=-1)
    middle_row, middle_column = height / 2, (width / 2 + 5 * phase) % width
    inside = (row - middle_row) ** 2 + (column - middle_column) ** 2 < (min(height, width) / 4) ** 2
    picture[inside] = (250, 40 + 13 * (phase % 8), 10)
    return picture.astype(np.uint8)


def save_pictures(folder: Path) -> None:
    Image.fromarray(pattern(98, 70, 1)).save(folder / "70x98.png")
    Image.fromarray(pattern(560, 40, 2)).save(folder / "tall.png")
    Image.fromarray(pattern(45, 301, 3)).save(folder / "wide.png")
    Image.fromarray(pattern(3, 5, 4)).save(folder / "5x3.png")
    Image.fromarray(pattern(84, 113, 5)[..., 0]).save(folder / "grey.png")
    colours = (pattern(75, 120, 6) // 64).astype(np.int64) @ np.array([16, 4, 1])
    palette = Image.fromarray(colours.astype(np.uint8), mode="P")
    levels = (0, 80, 170, 255)
    palette.putpalette([levels[index >> shift & 3] for index in range(64) for shift in (4, 2, 0)])
    palette.save(folder / "palette.png")
    Image.fromarray(pattern(333, 500, 7)).save(folder / "large.png")
    for number in range(5):
        Image.fromarray(pattern(60, 90, 8 + 2 * number)).save(folder / f"frame-{number}.png")


def save_clip(path: Path, frames: int, height: int, width: int) -> None:
    import av  # only here: tests read the files, and need no encoder

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"crf": "20", "g": "8"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pattern(height, width, number), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    save_pictures(MEDIA)
    save_clip(MEDIA / "clip.mp4", frames=25, height=96, width=128)
    save_clip(MEDIA / "short.mp4", frames=5, height=64, width=96)


if __name__ == "__main__":
    main()
