"""What goes where: the answer and nothing else to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from qvl.runtime.records import FinishReason, Stats

INTERRUPTED = 130
# What a shell reports for a program that a closed pipe ended.
BROKEN_PIPE = 141

GIB = 1024**3


class AnswerWriter:
    """Streams the answer to stdout as it grows, and sees to the newline at its end."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._last = ""

    def write(self, text: str) -> None:
        if text and not self._silent:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text[-1]

    def end(self) -> None:
        """End a complete answer, if only with an empty line."""
        if not self._silent and self._last != "\n":
            self.write("\n")

    def break_off(self) -> None:
        """End a line that was begun, so that what comes next starts on its own."""
        if self._last:
            self.end()


@contextlib.contextmanager
def manners(writer: AnswerWriter) -> Iterator[None]:
    """End quietly on Ctrl-C and on a closed pipe, and never leave half a line on stdout."""
    try:
        yield
    except BrokenPipeError:
        silence_stdout()
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            writer.break_off()
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        writer.break_off()
        raise


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process on the spot, for the import of a native library that would make it an ImportError."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    except ValueError:  # not in the main thread, where no Ctrl-C arrives either
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def silence_stdout() -> None:
    """Send the rest of stdout nowhere: Python would complain about a closed pipe when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def error(message: str) -> None:
    _line(f"qvl: error: {message}")


def note(message: str, quiet: bool = False) -> None:
    if not quiet:
        _line(f"qvl: {message}")


def show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 -- the signature of warnings.showwarning
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Takes the place of `warnings.showwarning`, which shows a line of source code."""
    _line(f"qvl: warning: {message}")


def _line(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for (bytes done, bytes in all); None when nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def stats(figures: Stats, finish_reason: FinishReason) -> None:
    """The figures of an answer, a line each."""
    rows = [
        ("prompt", f"{figures.prompt_tokens} tokens, {figures.vision_tokens} of them pictures and clips"),
        ("answer", f"{figures.new_tokens} tokens ({finish_reason})"),
        ("load", _seconds(figures.load_seconds)),
        ("read media", _seconds(figures.preprocess_seconds)),
        ("vision", _seconds(figures.vision_seconds)),
        ("prefill", _seconds(figures.prefill_seconds)),
        ("first token", f"{_seconds(figures.time_to_first_token)} after the question"),
        ("decode", f"{_seconds(figures.decode_seconds)}, {figures.tokens_per_second:.1f} tokens/s"),
        ("peak memory", f"{figures.peak_memory_bytes / GIB:.2f} GiB"),
    ]
    for name, value in rows:
        print(f"{name:<12} {value}", file=sys.stderr)


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def json_object(fields: dict[str, Any]) -> None:
    """One object, on one line; records become objects."""
    plain = {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for key, value in fields.items()
    }
    print(json.dumps(plain, ensure_ascii=False), flush=True)
