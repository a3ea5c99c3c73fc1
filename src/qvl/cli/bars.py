"""A bar for each file on its way and one for all, with rate and time left, on a terminal; elsewhere remarks alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qvl.cli import render
from qvl.hub.progress import Watcher

_ALL = "all files"


class Remarks(Watcher):
    """What is worth a line on stderr."""

    def note(self, text: str) -> None:
        render.note(text)


class Bars(Watcher):
    """Remarks and bars. A file's bar comes with its first byte and goes when it is done."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._all = TaskID(0)

    def note(self, text: str) -> None:
        if self._progress is None:
            render.note(text)
        else:
            self._progress.console.print(f"qvl: {text}", markup=False, highlight=False, soft_wrap=True)

    def begin(self, files: Sequence[tuple[str, int, int]]) -> None:
        self.end()
        with self._lock:
            self._sizes = {path: size for path, size, _ in files}
            self._done = {path: done for path, _, done in files}
            self._tasks = {}
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            # What was there before counts as done and not towards the rate.
            before, size = sum(self._done.values()), sum(self._sizes.values())
            self._all = self._progress.add_task(_ALL, total=size, completed=before)
            self._progress.start()

    def moved(self, path: str, count: int) -> None:
        with self._lock:
            if self._progress is None:
                return
            if path not in self._tasks:
                before = self._done.get(path, 0)
                self._tasks[path] = self._progress.add_task(path, total=self._sizes.get(path), completed=before)
            task = self._tasks[path]
            self._progress.update(task, advance=count)
            self._progress.update(self._all, advance=count)
            done = next(entry for entry in self._progress.tasks if entry.id == task).completed
            self._progress.update(task, visible=done < self._sizes.get(path, 0))

    def end(self) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
