"""Pictures to patches: open, turn upright, resize to whole merge squares, normalise, cut.

The arithmetic is that of the reference image processor, to the bit; what comes before it is what people expect to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageOps

from qvl.errors import MediaError
from qvl.messages import Image, ImageSource
from qvl.processing.media import PICTURE_BYTES, describe, open_source
from qvl.processing.pillow import check_size, header_suffices, open_picture, reading
from qvl.processing.prompt import Vision
from qvl.processing.resize import MODEL_MAX_PIXELS, MODEL_MIN_PIXELS, fit_image, fitted_sizes, merge_limits
from qvl.processing.resize import smart_resize as smart_resize

_ORIENTATION = 0x0112


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
        Raises ValueError that names the key whose value is of no use.
        """
        size = config.get("size") or {}
        if not isinstance(size, Mapping):
            raise ValueError(f"size is {_shown(size)}; an object was expected")
        found: dict[str, Any] = {}
        for names, read in ((_WHOLE, _whole), (_COLOURS, _colours), (("rescale_factor",), _positive)):
            found |= {name: read(name, config[name]) for name in names if config.get(name) is not None}
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if name not in found and size.get(edge) is not None:
                found[name] = _whole(f"size.{edge}", size[edge])
        least, most = (found.get(name, getattr(ImageOptions, name)) for name in ("min_pixels", "max_pixels"))
        if least > most:
            raise ValueError(f"min_pixels {least} is more than max_pixels {most}")
        if min(found.get("image_std", ImageOptions.image_std)) <= 0:
            raise ValueError(f"image_std is {_shown(config['image_std'])}; numbers above 0 were expected")
        return ImageOptions(**found | {name: value for name, value in overrides.items() if value is not None})


_WHOLE = ("min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size")
_COLOURS = ("image_mean", "image_std")


def _shown(value: object) -> str:
    return ascii(value)[:60]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(name: str, value: Any) -> int:
    if not _is_number(value) or value < 1 or value != int(value):
        raise ValueError(f"{name} is {_shown(value)}; a whole number above 0 was expected")
    return int(value)


def _positive(name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} is {_shown(value)}; a number above 0 was expected")
    return float(value)


def _colours(name: str, value: Any) -> tuple[float, float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_is_number, value)):
        raise ValueError(f"{name} is {_shown(value)}; three numbers were expected, for red, green and blue")
    return float(value[0]), float(value[1]), float(value[2])


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
    with reading(name), open_picture(media.file()) as image:
        return _convert(image, name, raw_pixels)


def image_size(source: ImageSource, *, raw_pixels: bool = False) -> tuple[int, int]:
    """(height, width) of the picture that `load_image` gives, without its pixels where the file's form allows that.

    Arguments and errors as `load_image`; damage beyond the header may go unseen.
    """
    if isinstance(source, np.ndarray) or not isinstance(source, (str, Path, bytes)):
        image = load_image(source, raw_pixels=raw_pixels)
        return image.height, image.width
    media = open_source(source, max_bytes=PICTURE_BYTES)
    with reading(media.name), open_picture(media.file()) as image:
        check_size(image, media.name)
        if not header_suffices(image):
            image.load()
        # Pillow's own getexif of a PNG decodes it first; whether there is anything to find by that is known by now.
        turned = not raw_pixels and _orientation(image, PILImage.Image.getexif) in range(5, 9)
        return (image.width, image.height) if turned else (image.height, image.width)


def image_vision(part: Image, options: ImageOptions) -> Vision:
    """Cut a picture into patches. Limits of the part win over the options. Raises MediaError and UsageError."""
    image = load_image(part.source, raw_pixels=options.raw_pixels)
    size = (image.height, image.width)
    limits, wished = _wishes(part, options)
    image = fit_image(image, limits, wished, options.factor, describe(part.source))
    patches = frames_to_patches(np.asarray(image)[None], options)
    grid = (1, image.height // options.patch_size, image.width // options.patch_size)
    return Vision("image", patches, grid, size)


def image_grid(part: Image, options: ImageOptions) -> tuple[int, int, int]:
    """The grid_thw that `image_vision` gives a picture, from its header, and its errors as far as that shows them."""
    size = image_size(part.source, raw_pixels=options.raw_pixels)
    limits, wished = _wishes(part, options)
    height, width = fitted_sizes(size, limits, wished, options.factor, describe(part.source))[-1]
    return 1, height // options.patch_size, width // options.patch_size


def _wishes(part: Image, options: ImageOptions) -> tuple[tuple[int, float], tuple[int | None, int | None]]:
    limits = merge_limits((part.min_pixels, part.max_pixels), (options.min_pixels, options.max_pixels))
    return limits, (part.resized_height, part.resized_width)


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


def _convert(image: PILImage.Image, name: str, raw_pixels: bool) -> PILImage.Image:
    check_size(image, name)
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


def _orientation(
    image: PILImage.Image, getexif: Callable[[PILImage.Image], PILImage.Exif] = lambda image: image.getexif()
) -> int:
    try:
        return int(getexif(image).get(_ORIENTATION, 1))
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
