"""Clips to patches: choose frames, decode only those, resize them one by one, cut.

Which frames and which size are the reference's, to the digit; a clip of one frame, which it refuses, shows it twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qvl.errors import MediaError, UsageError
from qvl.messages import ImageSource, Video
from qvl.processing.clip import Animation, Clip, Frame
from qvl.processing.clip import open_clip as open_clip
from qvl.processing.frames import frame_files
from qvl.processing.image import ImageOptions, frames_to_patches, image_size, load_image
from qvl.processing.media import Media, describe, open_source
from qvl.processing.prompt import Vision
from qvl.processing.resize import check_limits, fit_frame, fit_image, fitted_sizes, merge_limits

# Of all the frames of a clip together, after resizing, unless total_pixels says more; as patches they take 1.2 GB.
MAX_CLIP_PIXELS = 131072 * 28 * 28
# Two frames make one temporal patch.
_PAIR = 2


@dataclass(frozen=True)
class VideoOptions:
    """How clips are sampled. Pixels are per frame after resizing, but `total_pixels` is for all frames together."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    total_pixels: int = 24576 * 28 * 28

    def __post_init__(self) -> None:
        check_limits(self.min_pixels, self.max_pixels)


def frame_count(total: int, video_fps: float, part: Video, options: VideoOptions) -> int:
    """How many frames to take from `total`: even, at least 2 (a single frame is taken twice).

    Raises UsageError: fps and nframes together, nframes outside 2..total, limits that exclude each other.
    Source: smart_nframes of qwen-vl-utils 0.0.8.
    """
    if part.nframes is not None:
        if part.fps is not None:
            raise UsageError("fps and nframes exclude each other: give one of them")
        count = round(part.nframes / _PAIR) * _PAIR
        if not _PAIR <= count <= total:
            raise UsageError(f"nframes {part.nframes} is not possible: the clip has {total} frames, 2 are the least")
        return count
    fps = options.fps if part.fps is None else part.fps
    least = options.min_frames if part.min_frames is None else part.min_frames
    most = options.max_frames if part.max_frames is None else part.max_frames
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"fps {fps} has to be a positive number")
    if most < _PAIR or (least > most and part.min_frames is not None):
        raise UsageError(f"min_frames {least} and max_frames {most} leave no choice; at least 2 frames are needed")
    low = max(math.ceil(least / _PAIR) * _PAIR, _PAIR)
    high = max(min(most, total) // _PAIR * _PAIR, _PAIR)
    return round(min(max(total / video_fps * fps, low), high) / _PAIR) * _PAIR


def frame_range(total: int, video_fps: float, part: Video) -> tuple[int, int]:
    """The first and last frame between `video_start` and `video_end`, seconds, cut to the clip.

    Raises UsageError when no frame lies between them.
    """
    seconds = total / video_fps
    start = 0.0 if part.video_start is None else part.video_start
    end = seconds if part.video_end is None else part.video_end
    if math.isnan(start) or math.isnan(end):
        raise UsageError("video_start and video_end have to be numbers of seconds")
    first = math.ceil(min(max(start, 0.0), seconds) * video_fps)
    last = total - 1 if part.video_end is None else min(math.floor(min(max(end, 0.0), seconds) * video_fps), total - 1)
    if first > last:
        raise UsageError(f"no frame between {start:g} s and {end:g} s: the clip lasts {seconds:.2f} s ({total} frames)")
    return first, last


def frame_indices(first: int, last: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over first..last, both included; ties go to the even one.

    Source: torch.linspace(first, last, count).round(), in its float32 and from both ends, which decides near-ties.
    """
    step = np.float32(last - first) / np.float32(count - 1)
    up = np.arange(count)
    ahead = np.float32(first) + step * up.astype(np.float32)
    back = np.float32(last) - step * (count - 1 - up).astype(np.float32)
    return [int(index) for index in np.rint(np.where(up < count // 2, ahead, back))]


def video_vision(part: Video, options: VideoOptions, image_options: ImageOptions) -> Vision:
    """Cut a clip into patches: a file, an animation, a folder or glob pattern of frames, or a list of pictures.

    Limits of the part win over the options. Frames of a list are all used, each read and resized as a picture; the
    total_pixels of a clip bounds them too. Raises MediaError and UsageError; a MediaError names the source.
    """
    source, name = _find(part)
    if isinstance(source, Media):
        frames, size = _from_clip(part, source, options, image_options)
    else:
        frames, size = _from_list(part, source, name, options, image_options)
    patch = image_options.patch_size
    grid = (len(frames) // _PAIR, frames.shape[1] // patch, frames.shape[2] // patch)
    return Vision("video", frames_to_patches(frames, image_options), grid, size)


def video_grid(part: Video, options: VideoOptions, image_options: ImageOptions) -> tuple[int, int, int]:
    """The grid_thw that `video_vision` gives a clip, and its errors as far as they show without its pixels.

    One frame of an encoded clip is decoded: how it is turned is known only then. Of a list, only headers are read.
    """
    source, name = _find(part)
    if isinstance(source, Media):
        with closing(open_clip(source, raw_pixels=image_options.raw_pixels)) as reader:
            indices, limits = _plan(reader, part, options)
            frame = next(iter(reader.read(indices[:1])))
        count, size, name = len(indices), (frame.shape[0], frame.shape[1]), source.name
    else:
        count, limits = _plan_list(part, source, name, options, image_options)
        sizes = [image_size(item, raw_pixels=image_options.raw_pixels) for item in source]
        for index, (height, width) in enumerate(sizes):
            _check_same(name, index, source[index], (width, height), sizes[0][::-1])
        size, name = sizes[0], describe(source[0])
    wished = (part.resized_height, part.resized_width)
    height, width = fitted_sizes(size, limits, wished, image_options.factor, name)[-1]
    _check_total(part, (count, height, width), options, image_options, name)
    return count // _PAIR, height // image_options.patch_size, width // image_options.patch_size


def _find(part: Video) -> tuple[Media | list[ImageSource], str]:
    """An encoded clip, or the pictures that are its frames; and what messages call it."""
    source = part.source
    if not isinstance(source, (str, Path, bytes)):
        return list(source), "list of frames"
    if files := frame_files(source):
        return list(files), describe(source)
    media = open_source(source)
    return media, media.name


def _plan(reader: Animation | Clip, part: Video, options: VideoOptions) -> tuple[list[int], tuple[int, float]]:
    """Which frames of a clip to take, and the least and most pixels of each."""
    if reader.frames < 1:
        raise MediaError(f"{reader.name}: has no frames")
    first, last = frame_range(reader.frames, reader.fps, part)
    count = frame_count(last - first + 1, reader.fps, part, options)
    low = options.min_pixels if part.min_pixels is None else part.min_pixels
    total = options.total_pixels if part.total_pixels is None else part.total_pixels
    high = max(min(options.max_pixels, total / count * _PAIR), int(low * 1.05))
    return frame_indices(first, last, count), merge_limits((part.min_pixels, part.max_pixels), (low, high))


def _plan_list(
    part: Video, sources: Sequence[ImageSource], name: str, options: VideoOptions, image_options: ImageOptions
) -> tuple[int, tuple[int, float]]:
    """How many frames a list of pictures makes, and the least and most pixels of each."""
    if not sources:
        raise MediaError(f"{name}: has no frames")
    if (part.nframes, part.video_start, part.video_end) != (None, None, None):
        raise UsageError(f"{name}: all frames of a list are used; nframes, video_start and video_end are for clips")
    if part.max_frames is not None and len(sources) > part.max_frames:
        raise UsageError(f"{name}: all {len(sources)} frames of a list are used; max_frames is {part.max_frames}")
    count = -(-len(sources) // _PAIR) * _PAIR
    low, high = merge_limits((part.min_pixels, part.max_pixels), (image_options.min_pixels, image_options.max_pixels))
    if part.max_pixels is None:
        total = options.total_pixels if part.total_pixels is None else part.total_pixels
        high = min(high, max(total / count * _PAIR, int(low * 1.05)))
    return count, (low, high)


def _check_total(
    part: Video, shape: tuple[int, int, int], options: VideoOptions, image_options: ImageOptions, name: str
) -> None:
    """Raise UsageError for a clip that memory would have to hold at (frames, height, width), and should not."""
    count, height, width = shape
    total = options.total_pixels if part.total_pixels is None else part.total_pixels
    if count * height * width > max(MAX_CLIP_PIXELS, total):
        tokens = count // _PAIR * height * width // image_options.factor**2
        raise UsageError(
            f"{name}: {count} frames of {width}x{height} are {count * height * width} pixels ({tokens} tokens), over "
            f"the {MAX_CLIP_PIXELS} of a clip; lower min_pixels, max_pixels, the resized size or the number of frames"
        )


def _check_same(name: str, index: int, source: ImageSource, size: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise MediaError unless a frame has the (width, height) of the first."""
    if size != first:
        raise MediaError(f"{name}: frame {index + 1} ({describe(source)}) is {size}, the first is {first}")


def _from_clip(
    part: Video, media: Media, options: VideoOptions, image_options: ImageOptions
) -> tuple[Frame, tuple[int, int]]:
    """The frames of an encoded clip, uint8 [T, height, width, 3], and (height, width) of the original."""
    wished = (part.resized_height, part.resized_width)
    with closing(open_clip(media, raw_pixels=image_options.raw_pixels)) as reader:
        indices, limits = _plan(reader, part, options)
        resized: Frame | None = None
        for index, frame in enumerate(reader.read(indices)):
            if resized is None:
                size = (frame.shape[0], frame.shape[1])
                sizes = fitted_sizes(size, limits, wished, image_options.factor, media.name)
                _check_total(part, (len(indices), *sizes[-1]), options, image_options, media.name)
                resized = np.empty((len(indices), *sizes[-1], 3), np.uint8)
            resized[index] = fit_frame(frame, sizes)
    assert resized is not None
    return resized, size


def _from_list(
    part: Video, sources: Sequence[ImageSource], name: str, options: VideoOptions, image_options: ImageOptions
) -> tuple[Frame, tuple[int, int]]:
    """As `_from_clip`, for pictures: those are resized as pictures are, which allows them more pixels than a clip's."""
    count, limits = _plan_list(part, sources, name, options, image_options)
    wished = (part.resized_height, part.resized_width)
    resized: Frame | None = None
    for index, source in enumerate(sources):
        image = load_image(source, raw_pixels=image_options.raw_pixels)
        if resized is None:
            first = image.size
        _check_same(name, index, source, image.size, first)
        image = fit_image(image, limits, wished, image_options.factor, describe(source))
        if resized is None:
            _check_total(part, (count, image.height, image.width), options, image_options, name)
            resized = np.empty((count, image.height, image.width, 3), np.uint8)
        resized[index] = np.asarray(image)
    assert resized is not None
    resized[len(sources) :] = resized[len(sources) - 1]  # an odd count repeats its last
    return resized, (first[1], first[0])
