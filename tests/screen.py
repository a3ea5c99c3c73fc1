"""A terminal as far as these tests need one: what its lines show after a program has written to it."""

from __future__ import annotations

import re
import unicodedata

# Control sequences, titles and the like, and everything else a character at a time.
_PIECE = re.compile(
    r"\x1b\[(?P<numbers>[?>\d;]*)(?P<letter>[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>]|(?P<text>[^\x1b])"
)
_IGNORED = "mhlnrt"  # colours, modes, questions about the terminal


class Screen:
    """Lines that scroll; the cursor can only reach the last `height` of them, as in a real terminal."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, written: str) -> str:
        """Take what was written; returns the beginning of a sequence that is not whole yet."""
        end = 0
        while piece := _PIECE.match(written, end):
            end = piece.end()
            if piece["letter"]:
                self._obey(piece["letter"], piece["numbers"])
            elif piece["text"]:
                self._put(piece["text"])
        return written[end:]

    @property
    def text(self) -> list[str]:
        """All lines that were ever shown, without what trails."""
        shown = [line.replace("\0", "").rstrip() for line in self.lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row, self.column = self.row + 1, 0
        elif character == "\r":
            self.column = 0
        elif character == "\b":
            self.column = max(0, self.column - 1)
        elif character.isprintable():
            wide = unicodedata.east_asian_width(character) in "WF"
            if self.column + wide >= self.width:
                self.row, self.column = self.row + 1, 0
            self._grow()
            line = self.lines[self.row].ljust(self.column)
            # The second place of a wide character is kept, so that columns stay columns.
            new = character + "\0" * wide
            self.lines[self.row] = line[: self.column] + new + line[self.column + len(new) :]
            self.column += len(new)
        self._grow()

    def _grow(self) -> None:
        while self.row >= len(self.lines):
            self.lines.append("")

    def _obey(self, letter: str, numbers: str) -> None:
        count = int(numbers) if numbers.isdecimal() else 1
        line = self.lines[self.row]
        if letter in "AB":
            top = max(0, len(self.lines) - self.height)
            self.row = max(top, self.row - count) if letter == "A" else self.row + count
            self._grow()
        elif letter in "CD":
            self.column = max(0, self.column + (count if letter == "C" else -count))
        elif letter == "K":
            self.lines[self.row] = {"": line[: self.column], "0": line[: self.column], "2": ""}[numbers]
        elif letter == "J":
            assert numbers in ("", "0")
            self.lines[self.row :] = [line[: self.column]]
        else:
            assert letter in _IGNORED, f"\\x1b[{numbers}{letter} is not known here"
