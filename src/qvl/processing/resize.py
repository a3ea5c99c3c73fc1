"""To what size pictures and frames are brought, and the antialiased bicubic that brings them there.

In the reference Pillow resizes pictures and torchvision clips, and their bytes differ. Here torchvision's is two
products with narrow banded matrices, so NumPy's BLAS does the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from qvl.errors import MediaError, UsageError

MAX_RATIO = 200
# The bounds of the published checkpoints. The reference resizes a second time if a message asks for more or less.
MODEL_MIN_PIXELS = 4 * 28 * 28
MODEL_MAX_PIXELS = 16384 * 28 * 28

# Keys' cubic with this slope is what torch uses when antialiasing (and Pillow always); without, torch uses -0.75.
_SLOPE = -0.5
# Output lines computed by one product. Wide enough for BLAS, narrow enough that few of the weights in it are zero.
_BLOCK = 32
# How far a sum in float32 may be from another order of its additions: of some hundred numbers up to 255, generously.
_CLOSE = np.float32(1e-3)
_AT_ONCE = 1 << 16  # numbers that are done anew together


def smart_resize(height: int, width: int, *, factor: int = 28, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """The size, in pixels, that a picture of (height, width) is resized to: multiples of `factor` within the limits.

    Raises MediaError when one side is over 200 times the other.
    Source: smart_resize of the reference image processor; ties round to even, so 70 becomes 56.
    """
    if min(height, width) < 1:
        raise MediaError(f"a size of {width}x{height} has no pixels")
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise MediaError(f"{width}x{height} is too long and narrow: one side is over {MAX_RATIO} times the other")
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def check_limits(min_pixels: int, max_pixels: float) -> None:
    """Raise UsageError unless 0 < min_pixels <= max_pixels."""
    if min_pixels < 1 or max_pixels < 1:
        raise UsageError(f"min_pixels {min_pixels} and max_pixels {max_pixels} have to be positive")
    if min_pixels > max_pixels:
        raise UsageError(f"min_pixels {min_pixels} is more than max_pixels {max_pixels}")


def target_sizes(
    size: tuple[int, int],
    limits: tuple[int, float],
    wished: tuple[int | None, int | None],
    factor: int,
) -> list[tuple[int, int]]:
    """The (height, width) to resize to, one after the other; a second one only outside the model's own bounds.

    size: of the original. limits: min and max pixels. wished: resized_height and resized_width of the message, which
    win over the limits but not over the model's bounds. Raises UsageError and MediaError as `smart_resize`.
    """
    height, width = wished
    if (height is None) != (width is None):
        raise UsageError("resized_height and resized_width have to be given together")
    if height is not None and width is not None:
        if min(height, width) < 1:
            raise UsageError(f"resized_height {height} and resized_width {width} have to be positive")
        _check_possible(f"resized_height {height} and resized_width {width} are {height * width}", height * width)
        size, limits = (height, width), (MODEL_MIN_PIXELS, MODEL_MAX_PIXELS)
    else:
        _check_possible(f"min_pixels asks for {limits[0]}", limits[0])
    first = smart_resize(*size, factor=factor, min_pixels=limits[0], max_pixels=limits[1])
    if MODEL_MIN_PIXELS <= first[0] * first[1] <= MODEL_MAX_PIXELS:
        return [first]
    return [first, smart_resize(*first, factor=factor, min_pixels=MODEL_MIN_PIXELS, max_pixels=MODEL_MAX_PIXELS)]


def _check_possible(request: str, pixels: int) -> None:
    """Refuse what the model's bound would undo, after a picture in between that fits in no memory."""
    if pixels > MODEL_MAX_PIXELS:
        raise UsageError(
            f"{request} pixels ({pixels // 784} tokens); a picture or frame has at most {MODEL_MAX_PIXELS} "
            f"({MODEL_MAX_PIXELS // 784} tokens)"
        )


def merge_limits(wished: tuple[int | None, int | None], standard: tuple[int, float]) -> tuple[int, float]:
    """Min and max pixels where a message may give either. Raises UsageError when it gives both the wrong way round.

    A max given alone may be below the standard min: then, as in the reference, it bounds what is larger, and what is
    smaller is still brought up to the min.
    """
    check_limits(*standard)
    low, high = wished
    if low is not None and high is not None:
        check_limits(low, high)
        return low, high
    if low is not None:
        check_limits(low, max(low, standard[1]))
        return low, max(low, standard[1])
    if high is not None:
        check_limits(1, high)
        return standard[0], high
    return standard


def fitted_sizes(
    size: tuple[int, int],
    limits: tuple[int, float],
    wished: tuple[int | None, int | None],
    factor: int,
    name: str,
) -> list[tuple[int, int]]:
    """`target_sizes` of a picture or clip that is called `name`, which a MediaError begins with."""
    try:
        return target_sizes(size, limits, wished, factor)
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from None


def fit_image(
    image: PILImage.Image,
    limits: tuple[int, float],
    wished: tuple[int | None, int | None],
    factor: int,
    name: str,
) -> PILImage.Image:
    """Resize an RGB picture with Pillow's bicubic to `target_sizes`. A MediaError names the picture."""
    for height, width in fitted_sizes((image.height, image.width), limits, wished, factor, name):
        image = image.resize((width, height), PILImage.Resampling.BICUBIC)
    return image


@dataclass(frozen=True, eq=False)
class _Taps:
    """Of each output line the input lines it is mixed from, from `low` on, and their weights, behind them zeros."""

    low: npt.NDArray[np.int64]  # [target]
    high: npt.NDArray[np.int64]  # [target]
    weights: npt.NDArray[np.float32]  # [target, most taps of any line]


@dataclass(frozen=True, eq=False)
class _Band:
    """A run of output lines [start, stop) and the input lines [first, last) they are mixed from."""

    start: int
    stop: int
    first: int
    last: int
    weights: npt.NDArray[np.float32]  # [stop - start, last - first]


def _fused(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], z: float) -> npt.NDArray[np.float32]:
    """x * y + z rounded once, which is what the compiled reference does: float64 holds the product exactly."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def _cubic(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    x = np.abs(x)
    near = _fused(_fused(x, np.full_like(x, _SLOPE + 2), -(_SLOPE + 3)) * x, x, 1)
    far = _fused(_fused(x - np.float32(5), x, 8), x, -4) * np.float32(_SLOPE)
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


@lru_cache(maxsize=16)
def _taps(source: int, target: int) -> _Taps:
    """The weights that take `source` lines to `target`, in float32 like the reference: rounding decides ties."""
    scale = np.float32(source) / np.float32(target)
    stretch = max(scale, np.float32(1))  # when shrinking, the filter covers all input lines under an output line
    support = np.float32(2) * stretch
    center = (np.float64(scale) * (np.arange(target) + 0.5)).astype(np.float32)
    low = np.maximum((center.astype(np.float64) - support + 0.5).astype(np.int64), 0)
    high = np.minimum((center.astype(np.float64) + support + 0.5).astype(np.int64), source)
    taps = low[:, None] + np.arange(int((high - low).max()))
    distance = (taps.astype(np.float32) - center[:, None] + np.float32(0.5)) * (np.float32(1) / stretch)
    weights = np.where(taps < high[:, None], _cubic(distance), np.float32(0))
    weights /= np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
    return _Taps(low, high, weights)


@lru_cache(maxsize=16)
def _bands(source: int, target: int) -> tuple[_Band, ...]:
    """The taps as matrices."""
    taps = _taps(source, target)
    low, high, weights = taps.low, taps.high, taps.weights
    bands = []
    for start in range(0, target, _BLOCK):
        stop = min(start + _BLOCK, target)
        first, last = int(low[start]), int(high[stop - 1])
        block = np.zeros((stop - start, last - first), np.float32)
        for row in range(start, stop):
            block[row - start, low[row] - first : high[row] - first] = weights[row, : high[row] - low[row]]
        bands.append(_Band(start, stop, first, last, block))
    return tuple(bands)


def resize_frame(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize one frame, uint8 [H, W, 3], to uint8 [height, width, 3]; the same array when nothing changes.

    The bytes are the same on every machine, which those of a BLAS alone are not: where its sum is close to the middle
    between two of them, and the order of its additions would decide, the sum is done anew as the reference does it.
    """
    if frame.shape[:2] == (height, width):
        return frame
    rows, columns, channels = frame.shape
    source = planes = np.ascontiguousarray(frame.transpose(2, 0, 1), dtype=np.float32)
    if columns != width:  # first across, then down: the order decides the last bit
        across = np.empty((channels * rows, width), np.float32)
        flat = planes.reshape(channels * rows, columns)
        for band in _bands(columns, width):
            np.matmul(flat[:, band.first : band.last], band.weights.T, out=across[:, band.start : band.stop])
        planes = across.reshape(channels, rows, width)
    if rows != height:
        down = np.empty((channels, height, width), np.float32)
        for band in _bands(rows, height):
            for channel in range(channels):
                np.matmul(
                    band.weights, planes[channel, band.first : band.last], out=down[channel, band.start : band.stop]
                )
        planes = down
    close = np.nonzero(np.abs(planes - np.floor(planes) - np.float32(0.5)) < _CLOSE)
    for first in range(0, len(close[0]), _AT_ONCE):
        some = tuple(axis[first : first + _AT_ONCE] for axis in close)
        planes[some] = _exactly(source, some, height, width)
    np.clip(planes, 0, 255, out=planes)
    np.rint(planes, out=planes)
    return np.ascontiguousarray(planes.transpose(1, 2, 0), dtype=np.uint8)


def _exactly(
    source: npt.NDArray[np.float32], where: tuple[npt.NDArray[np.int64], ...], height: int, width: int
) -> npt.NDArray[np.float32]:
    """Numbers [n] of a resized picture at (channels, rows, columns), from the source [3, H, W].

    Each is a sum over taps in their order, every product added and rounded at once: so the compiled reference does it.
    """
    channels, rows, columns = where
    across, down = _taps(source.shape[2], width), _taps(source.shape[1], height)
    changes_rows, changes_columns = source.shape[1] != height, source.shape[2] != width
    total = np.zeros(len(channels), np.float32)
    for i in range(down.weights.shape[1] if changes_rows else 1):
        row = np.minimum(down.low[rows] + i, source.shape[1] - 1) if changes_rows else rows
        value = np.zeros(len(channels), np.float32)
        for j in range(across.weights.shape[1] if changes_columns else 1):
            column = np.minimum(across.low[columns] + j, source.shape[2] - 1) if changes_columns else columns
            tap = source[channels, row, column]
            value = _added(value, tap, across.weights[columns, j]) if changes_columns else tap
        total = _added(total, value, down.weights[rows, i]) if changes_rows else value
    return total


def _added(
    total: npt.NDArray[np.float32], value: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """total + value * weight, rounded once."""
    return (value.astype(np.float64) * weight + total).astype(np.float32)


def fit_frame(frame: npt.NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> npt.NDArray[np.uint8]:
    """Bring a frame, uint8 [H, W, 3], to the last of `target_sizes`; the reference does the second step with Pillow."""
    frame = resize_frame(frame, *sizes[0])
    for height, width in sizes[1:]:
        frame = np.asarray(PILImage.fromarray(frame).resize((width, height), PILImage.Resampling.BICUBIC))
    return frame


def resize_frames(frames: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize a clip, bicubic and antialiased, rounding half to even.

    frames: uint8 [T, H, W, 3]. Returns uint8 [T, height, width, 3] (the same array when the size is right already).
    One frame at a time in float32, so the memory beside input and output is a few frames whatever the length.
    Source: torchvision.transforms.functional.resize(BICUBIC, antialias=True) on a uint8 tensor.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((frames.shape[0], height, width, frames.shape[3]), np.uint8)
    for frame, out in zip(frames, resized, strict=True):
        out[...] = resize_frame(frame, height, width)
    return resized
