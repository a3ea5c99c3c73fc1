"""The front end for pipes and simple terminals: lines in, answers on standard output, all else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from qvl.cli import render
from qvl.cli.chat.editor import command, edited
from qvl.cli.chat.interrupt import Stopper, stopping
from qvl.cli.chat.talk import FENCE, Chat
from qvl.cli.chat.view import Rows, Sink
from qvl.cli.streams import to_stderr
from qvl.errors import UsageError


class PlainSink:
    """An answer on standard output as it comes."""

    def __init__(self, stopper: Stopper, begun: Callable[[], None]) -> None:
        self._stopper = stopper
        self._begun = begun
        self.writer = render.AnswerWriter(silent=False)

    @property
    def stopped(self) -> bool:
        return self._stopper.stopped

    def write(self, text: str) -> None:
        if not self._stopper.begun:
            self._begun()
        self._stopper.begun = True
        self.writer.write(text)


class PlainView:
    """`View` without colours. Remarks are told as all of qvl's are."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        render.note(text, self.quiet)

    def error(self, text: str) -> None:
        render.error(text)

    def rows(self, rows: Rows) -> None:
        to_stderr("".join(f"{line}\n" for line in aligned(rows)))

    def working(self, text: str) -> AbstractContextManager[object]:
        return render.status(text, self.quiet)

    @contextmanager
    def answering(self, text: str) -> Iterator[Sink]:
        with stopping() as stopper, render.status(text, self.quiet) as begun:
            sink = PlainSink(stopper, begun)
            try:
                yield sink
            finally:
                if stopper.begun:
                    sink.writer.end()

    def edit(self, text: str) -> str | None:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("/edit: there is no editor in a pipe; give the new words: /edit TEXT")
        if not command():
            raise UsageError("/edit: set EDITOR to open one, or give the new words: /edit TEXT")
        return edited(text)


def aligned(rows: Rows) -> list[str]:
    """Rows as lines, what belongs to a name below each other; a text of several lines is indented."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {value}".replace("\n", "\n" + " " * (width + 2)).rstrip() for name, value in rows]


def converse(chat: Chat) -> None:
    """Read lines until they end or somebody leaves."""
    shows_prompt = sys.stdin is not None and sys.stdin.isatty()
    for text in _inputs(chat, shows_prompt):
        if not chat.respond(text):
            return
        if chat.interrupted and not shows_prompt:  # nobody is there who could ask something else
            raise KeyboardInterrupt


def _inputs(chat: Chat, shows_prompt: bool) -> Iterator[str]:
    """What is said: a line each, or several between two FENCEs."""
    lines: list[str] = []
    while True:
        if shows_prompt:
            to_stderr("... " if lines else f"[{len(chat.attached)} attached] > " if chat.attached else "> ")
        try:
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except KeyboardInterrupt:
            if not shows_prompt:
                raise
            lines = []
            to_stderr("\n")
            continue
        except UnicodeDecodeError:
            raise UsageError("standard input is not UTF-8 text") from None
        if not line:
            break
        lines.append(line.rstrip("\r\n"))
        if not is_open("\n".join(lines)):
            yield "\n".join(lines)
            lines = []
    if shows_prompt:
        to_stderr("\n")
    if lines:
        yield "\n".join(lines)


def is_open(text: str) -> bool:
    """Whether a text begins with the mark of several lines and has not come to the one that ends it."""
    stripped = text.strip()
    return stripped.startswith(FENCE) and (len(stripped) < 2 * len(FENCE) or not stripped.endswith(FENCE))
