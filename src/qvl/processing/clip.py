"""Encoded clips: count the frames of one, then decode those that are asked for, by number.

Animations go through Pillow, everything else through PyAV and, where that is missing or fails, decord. Where decord is
right it gives the same pixels; in AVI, MPEG streams and trimmed files it gives other frames than asked for, and says
nothing. Some damaged clips crash either, so they run in a process beside this one (`clip_worker`), which is kept for
the next clip.
"""

from __future__ import annotations

import atexit
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from qvl.errors import MediaError, UsageError, suggest
from qvl.processing.image import to_rgb
from qvl.processing.media import Media, reason
from qvl.processing.pillow import check_animation, check_size, open_picture, reading

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

# Seconds that a decoder may take to open a clip, and for a batch of its frames.
DEADLINE = 300.0
# What browsers show an animation at when it gives no duration, in milliseconds.
_FRAME_MS = 100
_PILLOW_MAGIC = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff")
_READERS = ("av", "decord")
_IDLE = 4  # processes kept, for each reader
_PIPE = 1 << 20


class Animation:
    """Animated GIF, WebP or PNG, and a still as a clip of one frame, through Pillow."""

    def __init__(self, media: Media, raw_pixels: bool) -> None:
        self.name, self.raw_pixels = media.name, raw_pixels
        with reading(self.name):
            self.image = open_picture(media.file())
            check_size(self.image, self.name)
            self.frames, milliseconds = int(getattr(self.image, "n_frames", 1)), 0.0
            check_animation(self.image, self.frames, self.name)
            for index in range(self.frames):
                self.image.seek(index)
                self.image.load()  # WebP knows a frame's duration only then, the others decode when they go on
                milliseconds += self.image.info.get("duration") or _FRAME_MS
            self.fps = 1000 * self.frames / milliseconds

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            with reading(self.name):
                self.image.seek(index)
                frame = np.asarray(to_rgb(self.image, self.raw_pixels))
            yield frame

    def close(self) -> None:
        self.image.close()


class Clip:
    """A clip open in a decoder's process. Raises MediaError, and `_AbsentError` when the reader is not installed.

    spare: the reader that takes over, frame by frame the same, where the first one fails.
    """

    def __init__(self, media: Media, reader: str, spare: str | None = None) -> None:
        self.name, self.media, self.spare = media.name, media, spare
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        if not _installed(reader):
            raise _AbsentError
        path = media.path
        try:
            if path is None:
                self.folder = tempfile.TemporaryDirectory(prefix="qvl-", ignore_cleanup_errors=True)
                path = Path(self.folder.name, "clip")
                path.write_bytes(media.data)
        except OSError as error:
            self._forget_file()
            raise MediaError(f"{self.name}: there is no room for it on disk ({reason(error)})") from None
        self.worker = _borrow(reader, self.name)
        try:
            answer = self.worker.ask(self.name, open=str(path.absolute()))
        except BaseException:
            self.close()
            raise
        self.frames, self.fps = int(answer["frames"]), float(answer["fps"])

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        done = 0
        try:
            for frame in self.worker.frames(self.name, indices):
                done += 1
                yield frame
        except MediaError as failure:
            yield from self._from_spare(failure, indices[done:])

    def _from_spare(self, failure: MediaError, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames as the other reader has them. Raises the failure of this one when the other is of no help."""
        if self.spare is None:
            raise failure
        try:
            other = Clip(self.media, self.spare)
        except (MediaError, _AbsentError):
            raise failure from None
        with closing(other):
            if other.frames != self.frames:
                raise failure
            yield from other.read(indices)

    def close(self) -> None:
        _give_back(self.worker)
        self._forget_file()

    def _forget_file(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def open_clip(media: Media, *, raw_pixels: bool = False) -> Animation | Clip:
    """Open an encoded clip: animations with Pillow, others with PyAV or, where that is missing or fails, decord.

    `QVL_VIDEO_READER=av|decord` chooses. Raises MediaError, and UsageError when the chosen reader is not installed.
    """
    head = media.head()
    # To Pillow the pictures of a Motion JPEG are one picture.
    is_motion_jpeg = Path(media.name.partition("?")[0]).suffix.lower() in (".mjpeg", ".mjpg")
    if not is_motion_jpeg and (head.startswith(_PILLOW_MAGIC) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")):
        return Animation(media, raw_pixels)
    choice = _choice()
    failure: MediaError | None = None
    for name in _READERS if choice == "auto" else (choice,):
        try:
            return Clip(media, name, "decord" if (choice, name) == ("auto", "av") else None)
        except _AbsentError:
            continue
        except MediaError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    raise _none_installed(choice)


def readers() -> list[str]:
    """The installed readers that clips go through, in order. Raises UsageError when it is none."""
    choice = _choice()
    found = [name for name in (_READERS if choice == "auto" else (choice,)) if _installed(name)]
    if not found:
        raise _none_installed(choice)
    return found


def _choice() -> str:
    choice = os.environ.get("QVL_VIDEO_READER") or "auto"
    if choice != "auto" and choice not in _READERS:
        raise UsageError(f"QVL_VIDEO_READER={choice} is not known; av, decord or auto{suggest(choice, _READERS)}")
    return choice


def _none_installed(choice: str) -> UsageError:
    if choice == "auto":
        return UsageError("no video reader is installed: pip install av")
    return UsageError(f"QVL_VIDEO_READER={choice}, but {choice} is not installed: pip install {choice}")


class _AbsentError(Exception):
    """The reader is not installed, or its libraries do not load."""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # None or half a module in sys.modules
        return False


class _Worker:
    """A decoder's process. It is `good` for another clip until anything goes wrong with one."""

    def __init__(self, reader: str) -> None:
        self.reader, self.good, self.late = reader, True, False
        script = Path(__file__).with_name("clip_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), reader, json.dumps([str(place) for place in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, cast(io.BufferedReader, self.process.stdout)
        with suppress(ImportError, AttributeError, OSError):  # Linux; only faster
            import fcntl

            fcntl.fcntl(self.stdout, fcntl.F_SETPIPE_SZ, _PIPE)

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer. Raises MediaError, which names the clip, and _AbsentError."""
        self.good = False
        self._send(request)
        answer = self._answer(name)
        self.good = True
        return answer

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Decode frames, one after the other. Raises MediaError."""
        self.good = False
        self._send({"read": [int(index) for index in indices]})
        for number, _ in enumerate(indices, start=1):
            frame = np.empty(self._answer(name)["shape"], np.uint8)
            if self.stdout.readinto(frame.data.cast("B")) != frame.nbytes:
                raise self._gone(name)
            # Before the last one is handed out: a caller who wanted just that does not come back.
            self.good = number == len(indices)
            yield frame

    def _send(self, request: dict[str, Any]) -> None:
        with suppress(OSError):  # it has ended: reading its answer shows that too
            self.stdin.write(json.dumps(request).encode() + b"\n")
            self.stdin.flush()

    def _answer(self, name: str) -> dict[str, Any]:
        watch = threading.Timer(DEADLINE, self._stop_late)
        watch.daemon = True
        watch.start()
        try:
            line = self.stdout.readline()
        finally:
            watch.cancel()
        if not line.endswith(b"\n"):
            raise self._gone(name)
        answer: dict[str, Any] = json.loads(line)
        if "absent" in answer:
            raise _AbsentError
        if "error" in answer:
            raise MediaError(f"{name}: {answer['error']}")
        return answer

    def _stop_late(self) -> None:
        self.late = True
        self.process.kill()

    def _gone(self, name: str) -> MediaError:
        if self.late:
            return MediaError(f"{name}: not decoded after {DEADLINE:g} s")
        return MediaError(f"{name}: damaged, {self.reader} crashes on it")

    def rest(self) -> bool:
        """Close the clip; whether that left the process fit for another one."""
        if self.good:
            self._send({"close": True})
        return self.good and self.process.poll() is None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with suppress(OSError):
            self.stdin.close()


_idle: dict[str, list[_Worker]] = {name: [] for name in _READERS}
_idle_lock = threading.Lock()


def _borrow(reader: str, name: str) -> _Worker:
    with _idle_lock:
        while _idle[reader]:
            worker = _idle[reader].pop()
            if worker.process.poll() is None:
                return worker
    try:
        return _Worker(reader)
    except OSError as error:
        raise MediaError(f"{name}: the process that decodes clips does not start ({reason(error)})") from None


def _give_back(worker: _Worker) -> None:
    if worker.rest():
        with _idle_lock:
            if len(_idle[worker.reader]) < _IDLE:
                _idle[worker.reader].append(worker)
                return
    worker.stop()


@atexit.register
def _stop_idle() -> None:
    for workers in _idle.values():
        while workers:
            workers.pop().stop()


def _forget_idle() -> None:
    """In a process that was forked: they belong to the one it was forked from."""
    global _idle_lock
    _idle_lock = threading.Lock()
    for workers in _idle.values():
        workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_idle)
