"""What goes where: the answer and nothing else to stdout, everything else to stderr.

The first of our modules to be imported, since it sees to Ctrl-C during imports: what takes a while is imported late.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from qvl.cli.streams import OutputError, silence, takes_unicode, to_stderr

if TYPE_CHECKING:
    from types import FrameType

    from qvl.runtime.records import FinishReason, Stats

INTERRUPTED = 130
# What a shell reports for a program that a closed pipe ended.
BROKEN_PIPE = 141

GIB = 1024**3

_ERASE = "\r\x1b[K"
_status = ""  # the line that `status` shows at the moment


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
    import typer

    try:
        yield
    except BrokenPipeError:
        silence(sys.stdout)
        raise typer.Exit(BROKEN_PIPE) from None
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, OutputError):
            writer.break_off()
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        with contextlib.suppress(OSError, OutputError):
            writer.break_off()
        raise


def end_imports_at_once() -> None:
    """Let Ctrl-C end the process on the spot while something is being imported, and be what it was at any other time.

    Raised inside the import of a native library, KeyboardInterrupt comes out as an ImportError, or not at all. Does
    nothing when Ctrl-C is ignored, or is somebody else's.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread, where no Ctrl-C arrives either
            signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            if _status:
                to_stderr(_ERASE)
            os._exit(INTERRUPTED)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def error(message: str) -> None:
    _line(f"qvl: error: {message}")


def note(message: str, quiet: bool = False) -> None:
    if not quiet:
        _line(f"qvl: {message}")


def warn(message: str, quiet: bool = False) -> None:
    """Something that spoils what was asked for, in part."""
    if not quiet:
        _line(f"qvl: warning: {message}")


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
    line = " ".join(text.split()) + "\n"
    to_stderr(f"{_ERASE}{line}{_status}" if _status else line)


def is_live(quiet: bool) -> bool:
    """Whether stderr is a terminal where a line can be written over."""
    return not quiet and sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextlib.contextmanager
def status(text: str, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show what is being done on one line of stderr, until the end or until the function given is called."""
    global _status
    live = is_live(quiet)

    def end() -> None:
        global _status
        if _status:
            _status = ""
            to_stderr(_ERASE)

    if live:
        _status = f"qvl: {text} ..."[: _width() - 1]
        to_stderr(_status)
    try:
        yield end
    finally:
        end()


def _width() -> int:
    """Columns of the terminal that stderr is: stdout may be a pipe, or another one."""
    import shutil

    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        if columns:
            return columns
    return shutil.get_terminal_size().columns


@contextlib.contextmanager
def changing_status(quiet: bool) -> Iterator[Callable[[str], None]]:
    """`status` for work of many steps: the function given shows the next one."""
    with contextlib.ExitStack() as stack:

        def show(text: str) -> None:
            stack.close()
            stack.enter_context(status(text, quiet))

        yield show


@contextlib.contextmanager
def progress(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for (bytes done, bytes in all); None when nobody would see it."""
    if not is_live(quiet):
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
    """The figures of an answer on stderr, a line each."""
    to_stderr("".join(f"{name:<12} {value}\n" for name, value in stats_rows(figures, finish_reason)))


def stats_rows(figures: Stats, finish_reason: str, in_conversation: bool = False) -> list[tuple[str, str]]:
    """The figures of an answer as names and values. in_conversation: with what an earlier turn saved this one."""
    rows = [
        ("prompt", f"{figures.prompt_tokens} tokens, {figures.vision_tokens} of them pictures and clips"),
        ("answer", f"{figures.new_tokens} tokens ({finish_reason})"),
        ("load", _seconds(figures.load_seconds)),
        ("read media", _seconds(figures.preprocess_seconds)),
        ("vision", _seconds(figures.vision_seconds)),
        ("prefill", _seconds(figures.prefill_seconds)),
        ("first token", f"{_seconds(figures.time_to_first_token)} after the question"),
        ("decode", f"{_seconds(figures.decode_seconds)}, {figures.tokens_per_second:.1f} tokens/s"),
        *([] if in_conversation else _reuse(figures)),
        *_drafts(figures),
        ("peak memory", f"{figures.peak_memory_bytes / GIB:.2f} GiB"),
    ]
    if in_conversation:
        cached = f"{figures.computed_tokens} tokens, {figures.reused_tokens} from the cache"
        seen = f"{figures.encoded_visions} pictures and clips, {figures.reused_visions} known already"
        rows[1:1] = [("computed", cached), ("encoded", seen)]
    return rows


def _reuse(figures: Stats) -> list[tuple[str, str]]:
    """What did not have to be computed; nothing when there is nothing to tell."""
    if not figures.reused_tokens and not figures.reused_visions:
        return []
    seen = f", {figures.reused_visions} pictures and clips" if figures.reused_visions else ""
    return [("reused", f"{figures.reused_tokens} tokens of the prompt{seen}")]


def _drafts(figures: Stats) -> list[tuple[str, str]]:
    if not figures.drafted_tokens:
        return []
    share = 100 * figures.accepted_tokens / figures.drafted_tokens
    return [("drafts", f"{figures.accepted_tokens} of {figures.drafted_tokens} tokens accepted ({share:.0f} %)")]


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def json_object(fields: dict[str, Any]) -> None:
    """One object, on one line; records become objects. ASCII where stdout is not Unicode."""
    import dataclasses
    import json

    plain = {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for key, value in fields.items()
    }
    print(json.dumps(plain, ensure_ascii=not takes_unicode(sys.stdout)), flush=True)
