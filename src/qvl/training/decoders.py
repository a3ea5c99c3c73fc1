"""Processes that decode samples for a run.

Threads decode beside a run as well, but much of reading a picture and laying out a conversation holds the interpreter,
which the run needs for each of its ops: with two cores, an update of a small model then takes as long as if it had
decoded its samples itself.

Started as `clip_worker` is, by a command of their own: multiprocessing would run the program of whoever calls `train`
once more. Both ends speak in pickles of numbered lengths; the arrays of an example come behind, into memory that is
theirs.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import numpy as np

from qvl.errors import QvlError
from qvl.processing.prompt import Example
from qvl.training.formats import DataError

_COMMAND = "import sys; sys.path[:] = {path!r}; from qvl.training.decoders import main; main()"
_COUNT = struct.Struct("<Q")
_PIPE_BYTES = 1 << 20

Read = Callable[[int], Example]


class Decoders:
    """Reads examples by number in one of several processes. Safe to use from several threads."""

    def __init__(self, read: Read, count: int) -> None:
        """read: what they call; it is pickled. They start at once, and are ready when they are."""
        self._idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, "-c", _COMMAND.format(path=[str(place) for place in sys.path if place])]
        task = pickle.dumps(read, protocol=5)
        for _ in range(count):
            # A session of its own: Ctrl-C is for the run, which ends its update and then these.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            self._all.append(process)
            with suppress(ImportError, AttributeError, OSError):  # Linux; only faster
                import fcntl

                fcntl.fcntl(_pipe(process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            # In a thread: a pipe takes 64 KiB until the other end, which is still importing, takes them.
            threading.Thread(target=self._begin, args=(process, task), daemon=True).start()

    def _begin(self, process: subprocess.Popen[bytes], task: bytes) -> None:
        with suppress(OSError, ValueError):  # it has ended, which shows when it is asked; or all are being closed
            _send(_pipe(process.stdin), task)
        self._idle.put(process)

    def __call__(self, index: int) -> Example:
        """What `read` gives for a number. Raises DataError for a QvlError of it, RuntimeError for any other error."""
        process = self._idle.get()
        try:
            _send(_pipe(process.stdin), pickle.dumps(index))
            answer = _received(_pipe(process.stdout))
        except (OSError, EOFError):
            raise QvlError(
                f"a process that decodes samples has ended ({process.poll()}), maybe for want of memory; a lower "
                "training.workers takes less, and --resume goes on"
            ) from None
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        return cast(Example, answer)

    def close(self) -> None:
        """End them, whatever they are doing."""
        for process in self._all:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    _pipe(pipe).close()


@contextmanager
def decoders(read: Read, count: int) -> Iterator[Decoders]:
    """So many processes, until the block ends."""
    made = Decoders(read, count)
    try:
        yield made
    finally:
        made.close()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None
    return end


def _send(pipe: IO[bytes], data: bytes, buffers: Sequence[memoryview] = ()) -> None:
    pipe.write(b"".join(_COUNT.pack(size) for size in (len(buffers), len(data), *(part.nbytes for part in buffers))))
    pipe.write(data)
    for part in buffers:
        pipe.write(part)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Any:
    """Raises EOFError when the other end is gone."""
    count, size = (_COUNT.unpack(_filled(pipe, bytearray(_COUNT.size)))[0] for _ in range(2))
    sizes = [_COUNT.unpack(_filled(pipe, bytearray(_COUNT.size)))[0] for _ in range(count)]
    data = _filled(pipe, bytearray(size))
    return pickle.loads(data, buffers=[_filled(pipe, np.empty(part, np.uint8)) for part in sizes])


def _filled(pipe: IO[bytes], memory: Any) -> Any:
    view = memoryview(memory)
    while view:
        count = cast(Any, pipe).readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return memory


def main() -> None:
    """Answer numbers with examples until the other end is gone. What is printed goes to standard error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    asks, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    with contextlib.suppress(EOFError, BrokenPipeError):
        read: Read = _received(asks)
        while True:
            index = _received(asks)
            buffers: list[pickle.PickleBuffer] = []
            data = pickle.dumps(_outcome(read, index), protocol=5, buffer_callback=buffers.append)
            _send(answers, data, [buffer.raw() for buffer in buffers])


def _outcome(read: Read, index: int) -> Example | Exception:
    try:
        return read(index)
    except QvlError as error:
        return DataError(str(error))
    except Exception as error:
        return RuntimeError(f"sample {index}: {type(error).__name__}: {error}")
