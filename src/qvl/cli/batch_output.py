"""The answers of a batch: whole lines, in one piece, into a file that a killed run can go on with, or to stdout."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from qvl.cli.streams import OutputError, takes_unicode
from qvl.errors import UsageError

_SYNC_SECONDS = 5.0  # how much a power cut may take; a killed process loses nothing that was written
_HELD_BYTES = 16 << 20  # answers waiting for their turn, in memory


class Sink(Protocol):
    """Where finished lines go. ascii: whether it takes nothing else."""

    name: str
    ascii: bool

    def append(self, line: bytes) -> None:
        """Write a line, its newline included, and let it go. Raises OutputError and BrokenPipeError."""
        ...


class StdoutSink:
    """Standard output."""

    name = "standard output"

    def __init__(self) -> None:
        self.ascii = not takes_unicode(sys.stdout)

    def append(self, line: bytes) -> None:
        sys.stdout.write(line.decode("utf-8"))
        sys.stdout.flush()


class OutputFile:
    """The file of a batch, which is this process's alone until it is closed. remedy: what goes on with it."""

    ascii = False
    remedy = "the same command goes on"

    def __init__(self, path: Path) -> None:
        """Raises UsageError when it cannot be written or another run is writing it."""
        self.name, self.path = str(path), path
        self._synced = time.monotonic()
        self._before_first: Callable[[], None] | None = None
        try:
            if path.is_dir():
                raise UsageError(f"--output {path}: is a folder")
            if not path.parent.is_dir():
                raise UsageError(f"--output {path}: there is no folder {path.parent}")
            # O_BINARY is Windows' word for leaving newlines alone.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(path, flags, 0o666)
        except (OSError, ValueError) as error:
            raise UsageError(f"--output {path}: cannot be written ({_reason(error)})") from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise UsageError(f"--output {path}: is not a file; without it the answers go to standard output")
            _lock(self._descriptor)
            self._end = os.lseek(self._descriptor, 0, os.SEEK_END)
        except BlockingIOError:
            self.close()
            raise UsageError(f"--output {path}: another run is writing it") from None
        except UsageError:
            self.close()
            raise

    def cut(self, end: int) -> None:
        """Drop what is behind this byte."""
        if end < self._end:
            os.ftruncate(self._descriptor, end)
        self._end = end

    def begin_anew(self, also: Callable[[], None]) -> None:
        """Drop all that it holds, and do this also, when the first line comes: until then a run may be refused."""

        def drop() -> None:
            also()
            os.ftruncate(self._descriptor, 0)

        self._end, self._before_first = 0, drop
        self.remedy = "the same command without --restart goes on"

    def append(self, line: bytes) -> None:
        if self._before_first is not None:
            try:
                self._before_first()
            except OSError as error:
                raise self._failed(error) from None
            self._before_first = None
        try:
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:  # one write, as a rule; a disk that is about to be full takes a part
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise self._failed(error) from None
        self._end += len(line)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have what was written survive a power cut. Raises OutputError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from None
        self._synced = time.monotonic()

    def _failed(self, error: OSError) -> OutputError:
        state = f"{self.remedy} from here" if self._before_first is None else "it is as it was"
        return OutputError(f"{self.name}: {_reason(error)}; {state}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class InOrder:
    """Lines by the position of their record, let through in order; `first` is the first to come.

    What has to wait is in memory up to a limit and then in a temporary file.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._places: dict[int, tuple[int, int]] = {}
        self._store: Any = tempfile.SpooledTemporaryFile(max_size=_HELD_BYTES)  # noqa: SIM115 -- closed with the run

    def put(self, position: int, line: bytes) -> Iterator[tuple[int, bytes]]:
        """Take a line; yield those whose turn it now is, with their positions."""
        if position != self._next:
            try:
                self._places[position] = (self._store.seek(0, os.SEEK_END), len(line))
                self._store.write(line)
            except OSError as error:
                raise OutputError(f"the folder of temporary files: {_reason(error)}") from None
            return
        yield position, line
        self._next += 1
        while self._next in self._places:
            offset, length = self._places.pop(self._next)
            self._store.seek(offset)
            yield self._next, self._store.read(length)
            self._next += 1
        if not self._places:
            self._store.seek(0)
            self._store.truncate()

    def close(self) -> None:
        self._store.close()


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError when somebody else has the file. Does without where there are no locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system that has none
        return


def _reason(error: OSError | ValueError) -> object:
    return getattr(error, "strerror", None) or error
