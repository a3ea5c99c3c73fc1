"""Clips to patches: choose frames, decode only those, resize them one by one, cut.

Which frames and which size are the reference's, to the digit; a clip of one frame, which it refuses, shows it twice.
"""

from __future__ import annotations

import math
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.errors import MediaError, UsageError, suggest
from qvl.messages import ImageSource, Video
from qvl.processing.image import Animation, ImageOptions, frame_files, frames_to_patches, load_image
from qvl.processing.media import Media, describe, open_source
from qvl.processing.prompt import Vision
from qvl.processing.resize import check_limits, fit_frame, fit_image, merge_limits, target_sizes

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

# Two frames make one temporal patch.
_PAIR = 2
# Frames asked of decord at a time: the others are resized already, so a long clip of large frames fits in memory.
_BATCH = 8
_PILLOW_MAGIC = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")


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
    source = part.source
    if not isinstance(source, (str, Path, bytes)):
        frames, size = _from_list(part, list(source), "list of frames", options, image_options)
    elif files := frame_files(source):
        frames, size = _from_list(part, files, describe(source), options, image_options)
    else:
        frames, size = _from_clip(part, open_source(source), options, image_options)
    patch = image_options.patch_size
    grid = (len(frames) // _PAIR, frames.shape[1] // patch, frames.shape[2] // patch)
    return Vision("video", frames_to_patches(frames, image_options), grid, size)


def _from_clip(
    part: Video, media: Media, options: VideoOptions, image_options: ImageOptions
) -> tuple[Frame, tuple[int, int]]:
    """The frames of an encoded clip, uint8 [T, height, width, 3], and (height, width) of the original."""
    name = media.name
    with closing(open_clip(media, raw_pixels=image_options.raw_pixels)) as reader:
        if reader.frames < 1:
            raise MediaError(f"{name}: has no frames")
        first, last = frame_range(reader.frames, reader.fps, part)
        count = frame_count(last - first + 1, reader.fps, part, options)
        low = options.min_pixels if part.min_pixels is None else part.min_pixels
        total = options.total_pixels if part.total_pixels is None else part.total_pixels
        high = max(min(options.max_pixels, total / count * _PAIR), int(low * 1.05))
        limits = merge_limits((part.min_pixels, part.max_pixels), (low, high))
        resized: Frame | None = None
        for index, frame in enumerate(reader.read(frame_indices(first, last, count))):
            if resized is None:
                size = (frame.shape[0], frame.shape[1])
                try:
                    sizes = target_sizes(size, limits, (part.resized_height, part.resized_width), image_options.factor)
                except MediaError as error:
                    raise MediaError(f"{name}: {error}") from None
                resized = np.empty((count, *sizes[-1], 3), np.uint8)
            resized[index] = fit_frame(frame, sizes)
    assert resized is not None
    return resized, size


def _from_list(
    part: Video, sources: Sequence[ImageSource], name: str, options: VideoOptions, image_options: ImageOptions
) -> tuple[Frame, tuple[int, int]]:
    """As `_from_clip`, for pictures: those are resized as pictures are, which allows them more pixels than a clip's."""
    if not sources:
        raise MediaError(f"{name}: has no frames")
    if (part.nframes, part.video_start, part.video_end) != (None, None, None):
        raise UsageError(f"{name}: all frames of a list are used; nframes, video_start and video_end are for clips")
    count = -(-len(sources) // _PAIR) * _PAIR
    low, high = merge_limits((part.min_pixels, part.max_pixels), (image_options.min_pixels, image_options.max_pixels))
    if part.max_pixels is None:
        total = options.total_pixels if part.total_pixels is None else part.total_pixels
        high = min(high, max(total / count * _PAIR, int(low * 1.05)))
    resized: Frame | None = None
    for index, source in enumerate(sources):
        image = load_image(source, raw_pixels=image_options.raw_pixels)
        if resized is None:
            first = image.size
        elif image.size != first:
            raise MediaError(f"{name}: frame {index + 1} ({describe(source)}) is {image.size}, the first is {first}")
        wished = (part.resized_height, part.resized_width)
        image = fit_image(image, (low, high), wished, image_options.factor, describe(source))
        if resized is None:
            resized = np.empty((count, image.height, image.width, 3), np.uint8)
        resized[index:] = np.asarray(image)  # to the end: an odd count repeats its last
    assert resized is not None
    return resized, (first[1], first[0])


def open_clip(media: Media, *, raw_pixels: bool = False) -> Animation | _Decord | _Av:
    """Open an encoded clip: animations with Pillow, others with decord or, where that is missing, PyAV.

    `QVL_VIDEO_READER=decord|av` chooses. Raises MediaError, and UsageError when the chosen reader is not installed.
    """
    head = media.head()
    if head.startswith(_PILLOW_MAGIC) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return Animation(media, raw_pixels)
    readers: dict[str, type[_Decord] | type[_Av]] = {"decord": _Decord, "av": _Av}
    choice = os.environ.get("QVL_VIDEO_READER") or "auto"
    if choice != "auto" and choice not in readers:
        raise UsageError(f"QVL_VIDEO_READER={choice} is not known; decord, av or auto{suggest(choice, readers)}")
    for name, reader in readers.items():
        with suppress(ImportError, OSError):
            if choice in ("auto", name):
                return reader(media)
    if choice == "auto":
        raise UsageError("no video reader is installed: pip install decord, or pip install av")
    raise UsageError(f"QVL_VIDEO_READER={choice}, but {choice} is not installed: pip install {choice}")


class _Decord:
    def __init__(self, media: Media) -> None:
        # How often it tries again where a broken clip ends; the default of 10240 looks like a hang.
        os.environ.setdefault("DECORD_EOF_RETRY_MAX", "128")
        os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self.name, self.folder = media.name, tempfile.TemporaryDirectory(prefix="qvl-")
        file = media.path or Path(self.folder.name, "clip")
        if media.path is None:  # decord reads from memory too, but some broken clips then crash the process
            file.write_bytes(media.data)
        try:
            with _quiet_stderr():
                self.clip: Any = decord.VideoReader(str(file))
            self.frames = len(self.clip)
            self.fps = float(self.clip.get_avg_fps())
            if self.frames and not (math.isfinite(self.fps) and self.fps > 0):
                self.fps = self.frames / max(float(self.clip.get_frame_timestamp(self.frames - 1)[1]), 1e-3)
        except Exception:  # decord's messages are source lines of its own
            self.folder.cleanup()
            raise MediaError(f"{self.name}: not a clip that can be read, or a damaged one") from None

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for start in range(0, len(indices), _BATCH):
            wanted = list(indices[start : start + _BATCH])
            try:
                with _quiet_stderr():
                    frames = self.clip.get_batch(wanted).asnumpy()
            except Exception:
                raise MediaError(f"{self.name}: damaged, frames {wanted[0]}..{wanted[-1]} do not decode") from None
            yield from frames

    def close(self) -> None:
        self.clip = None
        self.folder.cleanup()


class _Av:
    """PyAV, with decord's numbering: frames in order of presentation, counted by their packets."""

    def __init__(self, media: Media) -> None:
        import av  # its log stays off, as it is by default: turned on, it deadlocks with the decoding threads

        self.name = media.name
        self.errors = (av.FFmpegError, OSError, ValueError, TypeError, IndexError)  # no time stamps: TypeError
        try:
            with av.open(media.file()) as container:
                stream = container.streams.video[0]
                packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
                stamped = sorted((p.dts if p.pts is None else p.pts, p.is_keyframe) for p in packets)
                self.stamps = [stamp for stamp, _ in stamped]
                self.keys = [stamp for stamp, is_key in stamped if is_key]
                self.fps = float(stream.average_rate or stream.guessed_rate or 0)
                if self.stamps and not self.fps:
                    self.fps = len(stamped) / max(float((stamped[-1][0] - stamped[0][0]) * stream.time_base), 1e-3)
            self.frames = len(self.stamps)
            self.container = av.open(media.file())
        except self.errors:
            raise MediaError(f"{self.name}: not a clip that can be read, or a damaged one") from None

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        decoder, at, frame = self.container.decode(stream), self.keys[0] if self.keys else 0, None
        for index in indices:
            stamp = self.stamps[index]
            try:
                key = self.keys[bisect_right(self.keys, stamp) - 1] if self.keys else at
                if key > at:  # skip what lies before the key frame that this one is built on
                    self.container.seek(key, stream=stream)
                    decoder, at, frame = self.container.decode(stream), key, None
                while frame is None or at < stamp:
                    frame = next(decoder)
                    at = frame.pts if frame.pts is not None else frame.dts
            except (*self.errors, StopIteration):
                raise MediaError(f"{self.name}: damaged, frame {index} does not decode") from None
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))

    def close(self) -> None:
        self.container.close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """decord logs from C++ with no way to stop it, and what it says becomes a MediaError anyway."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    with Path(os.devnull).open("wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
