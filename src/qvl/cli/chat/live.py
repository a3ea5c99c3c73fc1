"""An answer as Markdown while it grows: what is finished is printed for good, the rest is drawn over in place.

Only whole blocks (a paragraph, a list, a table) are printed, since what comes may still change how an unfinished one
looks. Of an unfinished block that is taller than the terminal the end is shown until it is whole. So no line is ever
printed twice, and a long answer scrolls up as any output does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_Lines = list[list[Segment]]

# Seconds between two drawings; and at most this share of the time goes into drawing.
_INTERVAL = 0.08
_SHARE = 0.2


# Without HTML: tags in an answer are its words, and would vanish.
_PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough").disable(["html_block", "html_inline"])


def markdown(text: str) -> Markdown:
    """A text as rich shows it, but line by line: what a model reads off a picture has lines that mean something."""
    shown = Markdown("", hyperlinks=False)
    shown.parsed = _PARSER.parse(text)
    for block in shown.parsed:
        for piece in block.children or ():
            if piece.type == "softbreak":
                piece.type = "hardbreak"
    return shown


class LiveMarkdown:
    """Between `start` and `stop`, `write` shows more of a text."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._done = 0  # lines printed for good
        self._tail: _Lines = []
        self._next = 0.0
        self._live = Live(_Tail(self), console=console, auto_refresh=False, transient=True)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        """Print what is left."""
        lines = self._lines(self._text)
        self._tail = []
        self._print(lines[self._done :])
        self._done = len(lines)
        self._live.stop()

    def write(self, text: str) -> None:
        """Take the next piece; drawn now or with one of the next."""
        self._text += _visible(text)
        now = time.monotonic()
        if now >= self._next:
            self._draw()
            after = time.monotonic()
            self._next = after + max(_INTERVAL, (after - now) / _SHARE)

    @property
    def tail(self) -> _Lines:
        """The lines that are not printed yet, as many of the last as there is room for."""
        return self._tail[-max(1, self._console.height - 1) :]

    def _draw(self) -> None:
        lines = self._lines(self._text)
        finished = self._lines(self._text[: self._finished()])
        done = max(self._done, len(finished))
        self._tail = lines[done:]
        self._print(lines[self._done : done])
        self._done = done
        self._live.refresh()

    def _finished(self) -> int:
        """Where the last block begins; all before it can change no more."""
        starts = [token.map[0] for token in _PARSER.parse(self._text) if token.level == 0 and token.map]
        if not starts:
            return 0
        return sum(len(line) for line in self._text.splitlines(keepends=True)[: max(starts)])

    def _lines(self, text: str) -> _Lines:
        if not text.strip():
            return []
        return self._console.render_lines(markdown(text), pad=False)

    def _print(self, lines: _Lines) -> None:
        if lines:
            self._console.print(_Block(lines), end="")


class _Block:
    """Lines that are rendered already."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()


class _Tail:
    """What is drawn over: the end of the unfinished block."""

    def __init__(self, owner: LiveMarkdown) -> None:
        self._owner = owner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for index, line in enumerate(self._owner.tail):
            if index:
                yield Segment.line()
            yield from line


def _visible(text: str) -> str:
    """Without the control characters that a terminal would obey."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable() or not char.isascii())
