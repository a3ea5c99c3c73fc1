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
        # How often it tries again where a broken clip ends; the default of 10240 looks like a hang.
        os.environ.setdefault("DECORD_EOF_RETRY_MAX", "128")
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
    """PyAV, with decord's numbering: frames in order of presentation, counted by their packets."""

    def __init__(self, path: str) -> None:
        import av  # its log stays off, as it is by default: turned on, it deadlocks with the decoding threads

        self.errors = (av.FFmpegError, OSError, ValueError, TypeError, IndexError)  # no time stamps: TypeError
        try:
            with av.open(path) as container:
                stream = container.streams.video[0]
                packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
                stamped = sorted((p.dts if p.pts is None else p.pts, p.is_keyframe) for p in packets)
                self.stamps = [stamp for stamp, _ in stamped]
                self.keys = [stamp for stamp, is_key in stamped if is_key]
                self.fps = float(stream.average_rate or stream.guessed_rate or 0)
                if self.stamps and not self.fps:
                    self.fps = len(stamped) / max(float((stamped[-1][0] - stamped[0][0]) * stream.time_base), 1e-3)
            self.frames = len(self.stamps)
            self.container = av.open(path)
        except self.errors:
            raise _DamagedError(UNREADABLE) from None

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        import numpy as np

        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        decoder, at, frame = self.container.decode(stream), self.keys[0] if self.keys else 0, None
        for index in indices:
            stamp = self.stamps[index]
            try:
                # Before the first key frame there is nothing to skip to: the first frame that decodes stands for what
                # is built on none.
                number = bisect_right(self.keys, stamp)
                key = self.keys[number - 1] if number else at
                if key > at:  # skip what lies before the key frame that this one is built on
                    self.container.seek(key, stream=stream)
                    decoder, at, frame = self.container.decode(stream), key, None
                while frame is None or at < stamp:
                    frame = next(decoder)
                    at = frame.pts if frame.pts is not None else frame.dts
            except (*self.errors, StopIteration):
                raise _DamagedError(f"damaged, frame {index} does not decode") from None
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))

    def close(self) -> None:
        self.container.close()


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
