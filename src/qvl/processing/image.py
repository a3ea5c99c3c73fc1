"""Pictures to patches: open, turn upright, resize to whole merge squares, normalise, cut.

The arithmetic is that of the reference image processor, to the bit; what comes before it is what people expect to see.
"""

from __future__ import annotations

import glob
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from qvl.errors import MediaError
from qvl.messages import Image, ImageSource
from qvl.processing.media import PICTURE_BYTES, Media, describe, exists, is_url, local_path, open_source, reason
from qvl.processing.prompt import Vision
from qvl.processing.resize import MODEL_MAX_PIXELS, MODEL_MIN_PIXELS, fit_image, merge_limits
from qvl.processing.resize import smart_resize as smart_resize

# Above this a picture is refused unread: 1.2 GB as RGB. Phones make 200 megapixels.
MAX_IMAGE_PIXELS = 400_000_000
_ORIENTATION = 0x0112
# What browsers show an animation at when it gives no duration, in milliseconds.
_FRAME_MS = 100
_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Pillow's limit and Python's warning filters belong to the whole process: one thread at a time changes them.
_pillow_lock = threading.Lock()
# Without a handler of its own Pillow's log lines would land on stderr; with one they still reach a configured logger.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class ImageOptions:
    """How pictures become patches; the defaults are those of the published checkpoints.

    min_pixels, max_pixels: limits on height * width after resizing; a message may set its own.
    raw_pixels: take the file's pixels as the reference does, without orientation and with alpha dropped.
    """

    min_pixels: int = MODEL_MIN_PIXELS
    max_pixels: int = MODEL_MAX_PIXELS
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    raw_pixels: bool = False

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this."""
        return self.patch_size * self.merge_size

    @staticmethod
    def from_preprocessor_config(config: Mapping[str, Any], **overrides: Any) -> ImageOptions:
        """Read a `preprocessor_config.json`, in which newer files keep the limits under `size`.

        overrides: fields of this class that win over the file; None leaves a field to the file.
        """
        size = config.get("size") or {}
        found = {name: config[name] for name in ImageOptions.__dataclass_fields__ if config.get(name) is not None}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if name not in found and size.get(edge) is not None:
                found[name] = size[edge]
        found |= {name: value for name, value in overrides.items() if value is not None}
        for name in ("image_mean", "image_std"):
            if name in found:
                found[name] = tuple(found[name])
        return ImageOptions(**found)


def frame_files(source: str | Path | bytes) -> list[Path] | None:
    """The picture files of a folder or a glob pattern, in natural order (frame2 before frame10).

    None when the source is neither. Raises MediaError when there is no picture in it.
    """
    if isinstance(source, bytes) or is_url(str(source)) or str(source)[:5].lower() == "data:":
        return None
    path = local_path(source)
    try:
        if exists(path):
            if not path.is_dir():
                return None
            found = list(path.iterdir())
        elif glob.has_magic(str(path)):
            found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - it may be absolute
        else:
            return None
    except (OSError, ValueError) as error:
        raise MediaError(f"{describe(source)}: cannot be read ({reason(error)})") from None
    files = [file for file in found if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise MediaError(f"{describe(source)}: no picture files there, so there are no frames")
    return sorted(files, key=_natural)


def _natural(path: Path) -> tuple[tuple[str | int, ...], str]:
    """Splitting at runs of ASCII digits puts text and numbers at alternate places, so they are never compared."""
    parts = re.split(r"([0-9]+)", str(path).casefold())
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), str(path)


def load_image(source: ImageSource, *, raw_pixels: bool = False) -> PILImage.Image:
    """Open a picture as RGB: upright, alpha on white, 16-bit greyscale scaled to 8, the first frame of an animation.

    source: path, URL, data: URI, `-`, encoded bytes, a PIL image (left as it is), or uint8 [H, W], [H, W, 3 or 4].
    raw_pixels: only `convert("RGB")`, as the reference does; no difference for a plain RGB picture.
    Raises MediaError, one line that names the source.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source, name), raw_pixels)
    with reading(name):
        if isinstance(source, PILImage.Image):
            return _convert(source, name, raw_pixels)
    if not isinstance(source, (str, Path, bytes)):
        raise MediaError(f"{name}: not a picture; give a path, URL, bytes, PIL image or uint8 array")
    media = open_source(source, max_bytes=PICTURE_BYTES)
    with reading(name), PILImage.open(media.file()) as image:
        return _convert(image, name, raw_pixels)


class Animation:
    """Animated GIF, WebP or PNG, and a still as a clip of one frame, through Pillow."""

    def __init__(self, media: Media, raw_pixels: bool) -> None:
        self.name, self.raw_pixels = media.name, raw_pixels
        with reading(self.name):
            self.image = PILImage.open(media.file())
            _check_size(self.image, self.name)
            self.frames, milliseconds = int(getattr(self.image, "n_frames", 1)), 0.0
            for index in range(self.frames):
                self.image.seek(index)
                self.image.load()  # WebP knows a frame's duration only then
                milliseconds += self.image.info.get("duration") or _FRAME_MS
            self.fps = 1000 * self.frames / milliseconds

    def read(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        for index in indices:
            with reading(self.name):
                self.image.seek(index)
                frame = np.asarray(to_rgb(self.image, self.raw_pixels))
            yield frame

    def close(self) -> None:
        self.image.close()


def image_vision(part: Image, options: ImageOptions) -> Vision:
    """Cut a picture into patches. Limits of the part win over the options. Raises MediaError and UsageError."""
    image = load_image(part.source, raw_pixels=options.raw_pixels)
    size = (image.height, image.width)
    limits = merge_limits((part.min_pixels, part.max_pixels), (options.min_pixels, options.max_pixels))
    image = fit_image(image, limits, (part.resized_height, part.resized_width), options.factor, describe(part.source))
    patches = frames_to_patches(np.asarray(image)[None], options)
    grid = (1, image.height // options.patch_size, image.width // options.patch_size)
    return Vision("image", patches, grid, size)


def frames_to_patches(frames: npt.NDArray[np.uint8], options: ImageOptions) -> npt.NDArray[np.float32]:
    """Normalise frames and cut them into patches in merge order.

    frames: uint8 [T, H, W, 3], H and W multiples of patch_size * merge_size; a last group that is not full repeats its
    last frame, so a picture is T = 1. Returns float32 [t*h*w, 3 * temporal_patch_size * patch_size**2].
    """
    count, height, width, _ = frames.shape
    size, merge, depth = options.patch_size, options.merge_size, options.temporal_patch_size
    rows, columns = height // options.factor, width // options.factor
    slices = -(-count // depth)
    tables = _normalisation(options)
    patches = np.empty((slices, rows, columns, merge, merge, 3, depth, size, size), np.float32)
    # A strip of merge squares at a time stays in the cache: bytes to patch order first, then a table look-up.
    for index in range(slices * depth):
        group, step = divmod(index, depth)
        if index >= count:
            patches[group, ..., step, :, :] = patches[group, ..., step - 1, :, :]
            continue
        for row in range(rows):
            strip = frames[index, row * options.factor : (row + 1) * options.factor]
            cut = strip.reshape(merge, size, columns, merge, size, 3).transpose(5, 2, 0, 3, 1, 4)
            for channel, plane in enumerate(np.ascontiguousarray(cut)):
                patches[group, row, :, :, :, channel, step] = tables[channel].take(plane)
    return patches.reshape(slices * rows * columns * merge**2, -1)


def _normalisation(options: ImageOptions) -> npt.NDArray[np.float32]:
    """float32 [3, 256], the value of each byte, rounded where the reference rounds: scaled in float64, then float32."""
    scaled = (np.arange(256, dtype=np.float64) * options.rescale_factor).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None] for values in (options.image_mean, options.image_std))
    return np.divide(scaled - mean, std, dtype=np.float32)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Run Pillow with its size check replaced by ours, its warnings silent, and its many errors as one MediaError."""
    try:
        with _pillow_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit, PILImage.MAX_IMAGE_PIXELS = PILImage.MAX_IMAGE_PIXELS, None
            try:
                yield
            finally:
                PILImage.MAX_IMAGE_PIXELS = limit
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{name}: not a picture, or of a format Pillow does not read") from None
    except MemoryError:
        raise MediaError(f"{name}: too large for the memory of this machine") from None
    except Exception as error:  # broken files reach Pillow's parsers as almost any type
        text = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"{name}: damaged or unreadable picture ({text})") from None


def _check_size(image: PILImage.Image, name: str) -> None:
    """Refuse a picture by its header, before anything is decoded."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{name}: {image.width}x{image.height} pixels are over the limit of {MAX_IMAGE_PIXELS // 10**6} megapixels"
        )


def _convert(image: PILImage.Image, name: str, raw_pixels: bool) -> PILImage.Image:
    _check_size(image, name)
    image.load()
    return to_rgb(image, raw_pixels)


def to_rgb(image: PILImage.Image, raw_pixels: bool) -> PILImage.Image:
    if raw_pixels:
        return image.convert("RGB")
    if _orientation(image) in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return PILImage.fromarray(_to_bytes(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = PILImage.new("RGB", image.size, (255, 255, 255))
        paper.paste(image, mask=image.getchannel("A"))
        return paper
    return image.convert("RGB")


def _orientation(image: PILImage.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse good pixels
        return 1


def _to_bytes(image: PILImage.Image) -> npt.NDArray[np.uint8]:
    """Greyscale of more than 8 bits to 0..255: by the depth of the format when it is known, else by the values."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (
        image.mode == "I" and low >= 0 and (255 < high <= 65535 or image.format == "PNG")
    ):
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    scaled: npt.NDArray[np.uint8] = np.rint((values - low) * (255 / (high - low or 1))).astype(np.uint8)
    return scaled


def _from_array(array: npt.NDArray[Any], name: str) -> PILImage.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise MediaError(
            f"{name}: an array of {array.dtype} {list(shape)}; uint8 [H, W], [H, W, 3] or [H, W, 4] expected"
        )
    return PILImage.fromarray(np.ascontiguousarray(array))
