"""How a download tells what it is doing. The command line draws it; by default nobody listens."""

from __future__ import annotations

from collections.abc import Sequence


class Watcher:
    """Told of every step, from any thread. This one says nothing."""

    def note(self, text: str) -> None:
        """Something a user would want to know: a source that failed, a lock that has to be waited for."""

    def begin(self, files: Sequence[tuple[str, int, int]]) -> None:
        """These files are about to be moved or read: name, size, and what of it earlier runs have done, in bytes."""

    def moved(self, path: str, count: int) -> None:
        """So many more bytes of a file are done; a negative number takes some back."""

    def end(self) -> None:
        """All that was begun is done, or given up."""
