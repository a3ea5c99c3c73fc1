"""The video decoders, in a process of their own: a clip that crashes or hangs one costs that process and nothing else.

`qvl.processing.clip` runs this file as a script, one process for a reader, and keeps it for the next clip: starting one
takes about 0.2 s, a frame of 1080p through the pipe 3 ms. It imports nothing of qvl. A line of JSON asks, a line of
JSON answers; the bytes of a frame, RGB, follow the line that says their shape:

    {"open": path} -> {"frames": n, "fps": x}      {"read": [i, ...]} -> {"shape": [h, w, 3]} + bytes, for each
    {"close": true} -> nothing                     instead of any answer: {"error": text}, {"absent": true}
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frame = npt.NDArray[np.uint8]

UNREADABLE = "not a clip that can be read, or a damaged one"
# Frames asked of decord at a time: a long clip of large frames then fits in memory.
_BATCH = 8


class _DamagedError(Exception):
    """The text ends a message that begins with the clip's name."""


class DecordReader:
    def __init__(self, path: str) -> None:
        os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            self.clip: Any = decord.VideoReader(path)
            self.frames = len(self.clip)
            self.fps = float(self.clip.get_avg_fps())
            if self.frames and not (math.isfinite(self.fps) and self.fps > 0):
                self.fps = self.frames / max(float(self.clip.get_frame_timestamp(self.frames - 1)[1]), 1e-3)
        except Exception:  # decord's messages are source lines of its own
            raise _DamagedError(UNREADABLE) from None

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for start in range(0, len(indices), _BATCH):
            wanted = list(indices[start : start + _BATCH])
            try:
                frames = self.clip.get_batch(wanted).asnumpy()
            except Exception:
                raise _DamagedError(f"damaged, frames {wanted[0]}..{wanted[-1]} do not decode") from None
            yield from frames

    def close(self) -> None:
        self.clip = None


class AvReader:
    """PyAV: frames in order of presentation, counted by their packets, without those that an edit list cuts off."""

    def __init__(self, path: str) -> None:
        import av  # its log stays off, as it is by default: turned on, it deadlocks with the decoding threads

        self.errors = (av.FFmpegError, OSError, ValueError, TypeError, IndexError)
        self.path = path
        try:
            with av.open(path) as container:
                stream = container.streams.video[0]
                # When each is shown and decoded, and whether it is a key frame; packets themselves take too much room.
                times = [
                    (packet.pts, packet.dts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size and not packet.is_discard
                ]
                stamped = [(dts if pts is None else pts, dts, is_key) for pts, dts, is_key in times]
                self.stamps = sorted(stamp for stamp, _, _ in stamped if stamp is not None)
                # A container finds a key frame by when it is decoded, at times before it is shown.
                self.keys = sorted(
                    (stamp, stamp if dts is None else dts)
                    for stamp, dts, is_key in stamped
                    if stamp is not None and is_key
                )
                # Only counting tells which frame is which where nothing says when one is shown and that is another
                # order than they are decoded in, as in AVI; and behind a jump in MPEG's program streams, where times
                # are off by a frame.
                unsaid = stream.codec_context.has_b_frames and any(pts is None for pts, _, _ in times)
                self.counted = unsaid or len(self.stamps) < len(times) or container.format.name == "mpeg"
                self.fps = _rate(self.stamps, stream)
            self.frames = len(times)
            self._open()
        except self.errors:
            raise _DamagedError(UNREADABLE) from None

    def _open(self) -> None:
        """Stand before the first frame."""
        import av

        self.container: Any = av.open(self.path)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.decoder = self.container.decode(self.stream)
        self.shown = 0  # frames that were decoded since
        self.at: int | None = None  # the stamp of the last of them
        self.frame: Any = None

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        import numpy as np

        last = -1
        for index in indices:
            try:
                if index < last or (last < 0 and self.shown):
                    self.container.close()
                    self._open()
                last = index
                if self.counted:
                    while self.shown <= index:
                        self._step()
                else:
                    self._go_to(self.stamps[index])
            except (*self.errors, StopIteration):
                raise _DamagedError(f"damaged, frame {index} does not decode") from None
            yield np.rot90(self.frame.to_ndarray(format="rgb24"), round(getattr(self.frame, "rotation", 0) / 90))

    def _step(self) -> int:
        """Decode a frame; its stamp."""
        self.frame = next(self.decoder)
        self.shown += 1
        self.at = int((self.frame.dts if self.frame.pts is None else self.frame.pts) or 0)
        return self.at

    def _go_to(self, stamp: int) -> None:
        """Decode up to the first frame that is shown then or later, from the last key frame before it if that is ahead.

        Before the first key frame the first frame that decodes stands for what is built on none.
        """
        number = bisect_right(self.keys, (stamp, sys.maxsize))
        if number and self.keys[number - 1][0] > (self.keys[0][0] if self.at is None else self.at):
            self._skip(number, stamp)
        while self.at is None or self.at < stamp:
            self._step()

    def _skip(self, number: int, stamp: int) -> None:
        """Decode the first frame from key frame `number` on, counted from 1.

        From an earlier one, or the beginning, where a container goes too far.
        """
        for earlier in range(number, 0, -1):
            self.container.seek(self.keys[earlier - 1][1], stream=self.stream)
            self.decoder = self.container.decode(self.stream)
            if self._step() <= stamp:
                return
        self.container.close()
        self._open()

    def close(self) -> None:
        self.container.close()


def _rate(stamps: Sequence[int], stream: Any) -> float:
    """Frames a second, as the file states them, unless that is far from what their times say.

    What browsers record states none, or the unit of its times.
    """
    stated = float(stream.average_rate or 0)
    span = float((stamps[-1] - stamps[0]) * stream.time_base) if stamps else 0.0
    counted = (len(stamps) - 1) / span if span > 0 else 0.0
    if counted and not 0.5 <= stated / counted <= 2:
        return counted
    return stated or float(stream.guessed_rate or 1)


READERS: dict[str, type[DecordReader] | type[AvReader]] = {"decord": DecordReader, "av": AvReader}


def _serve(reader: type[DecordReader] | type[AvReader], out: BinaryIO, requests: queue.SimpleQueue[str]) -> None:
    def say(**fields: Any) -> None:
        out.write(json.dumps(fields).encode() + b"\n")

    clip: DecordReader | AvReader | None = None
    while True:
        request = json.loads(requests.get())
        try:
            if clip is not None and "read" not in request:
                clip.close()
                clip = None
            if "open" in request:
                clip = reader(request["open"])
                say(frames=clip.frames, fps=clip.fps)
            elif "read" in request and clip is not None:
                for frame in clip.read(request["read"]):
                    say(shape=frame.shape)
                    out.write(frame.tobytes())
        except _DamagedError as error:
            say(error=str(error))
        except (ImportError, OSError):
            say(absent=True)
        except Exception:
            say(error=UNREADABLE)
        out.flush()


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # whoever asked is gone; the other thread may be stuck in a decoder


def main() -> None:
    """Serve the reader that the first argument names, with the import path that the second one holds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; when that ends, so does this
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "wb")
    sink = os.open(os.devnull, os.O_WRONLY)  # what the decoders print, and the traces of their crashes
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        _serve(READERS[sys.argv[1]], out, requests)


if __name__ == "__main__":
    main()
