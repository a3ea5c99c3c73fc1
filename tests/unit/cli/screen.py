"""A terminal as far as these tests need one: what its lines show after a program has written to it."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[(?P<numbers>[?\d;]*)(?P<letter>[A-Za-z])|(?P<text>[^\x1b])")


class Screen:
    """Lines that scroll; the cursor can only reach the last `height` of them, as in a real terminal."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, written: str) -> None:
        for piece in _PIECE.finditer(written):
            if piece["letter"]:
                self._obey(piece["letter"], piece["numbers"])
            elif piece["text"] == "\n":
                self.row += 1
                self.column = 0
                if self.row == len(self.lines):
                    self.lines.append("")
            elif piece["text"] == "\r":
                self.column = 0
            else:
                self._put(piece["text"])

    @property
    def text(self) -> list[str]:
        """All lines that were ever printed, without what trails."""
        shown = [line.rstrip() for line in self.lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.feed("\n")
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def _obey(self, letter: str, numbers: str) -> None:
        if letter == "A":
            top = max(0, len(self.lines) - self.height)
            self.row = max(top, self.row - int(numbers or 1))
        elif letter == "K":
            assert numbers == "2"
            self.lines[self.row] = ""
        else:
            assert letter in "mhl", f"\\x1b[{numbers}{letter} is not known here"
