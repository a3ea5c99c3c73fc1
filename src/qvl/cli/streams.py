"""Standard output and error as a shell may hand them over: closed, full, or in an encoding that lacks characters."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from qvl.errors import QvlError


class OutputError(QvlError):
    """Standard output takes no more: a full disk, as a rule."""


def open_streams() -> None:
    """Make a standard stream that the caller closed lead nowhere.

    Python has None in its place, which `print` takes for standard output, and the next file that is opened would get
    its number, so that whatever a library prints would go there. Standard input stays None: nothing is piped in.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


class _Stdout:
    """Standard output, whoever writes to it, with the reason for a failure in words.

    What has failed goes on failing: Click tries a stream out with an empty text, and hides what that raises.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failure: str | None = None

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    def forgive(self) -> None:
        """Let what still holds this stream, such as a logger, flush it at exit: where it leads now takes everything."""
        self._failure = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        if self._failure is not None:
            raise OutputError(self._failure)
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            silence(self._stream)
            self._failure = f"standard output: {error.strerror or error}"
            raise OutputError(self._failure) from None


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Raise OutputError where standard output takes no more, and leave nothing that Python would fail to flush."""
    stream = sys.stdout
    sys.stdout = guard = _Stdout(stream)
    try:
        yield
    finally:
        sys.stdout = stream
        guard.forgive()
        to_stderr("")


def forgiving_stdout() -> None:
    """Let a stdout that is not Unicode show "?" for what it lacks, where Python would raise in mid-answer."""
    if not takes_unicode(sys.stdout) and getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape"):
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def takes_unicode(stream: TextIO) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")
    except (AttributeError, LookupError):
        return True


def silence(stream: TextIO) -> None:
    """Send the rest of a stream nowhere: Python would complain when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def to_stderr(text: str) -> None:
    """What nobody can be told is lost: an answer does not fail for want of its remarks."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)
