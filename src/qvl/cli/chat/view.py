"""What the core of a conversation wants of a terminal; each front end gives it in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

Rows = Sequence[tuple[str, str]]


class Sink(Protocol):
    """Where an answer goes while it grows."""

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for the end of the answer."""

    def write(self, text: str) -> None:
        """Show the next piece."""


class View(Protocol):
    """A front end: the answer in one place, everything else in another."""

    def note(self, text: str) -> None:
        """A remark, on a line."""

    def error(self, text: str) -> None:
        """What went wrong, on a line."""

    def rows(self, rows: Rows) -> None:
        """Names and what belongs to them, a line each."""

    def working(self, text: str) -> AbstractContextManager[object]:
        """Say what is being done for as long as it takes."""

    def answering(self, text: str) -> AbstractContextManager[Sink]:
        """Show an answer; until its first piece, say what is being done. Ctrl-C stops it here."""

    def edit(self, text: str) -> str | None:
        """Let somebody change a text; None when it was given up. Raises UsageError where nobody can."""
