"""Several files at a time. The first failure, or Ctrl-C, calls the others off; what they have stays for later."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from qvl.hub.progress import Watcher
from qvl.hub.remote import RemoteFile
from qvl.hub.transfer import fetch
from qvl.hub.web import Stopped, Web

_LINGER = 2.0  # seconds that workers have to notice that they are called off
_TICK = 0.2  # how often the main thread looks up, so that Ctrl-C is noticed

Opener = Callable[[threading.Event], Web]


def fetch_all(files: Sequence[RemoteFile], folder: Path, open_web: Opener, jobs: int, watcher: Watcher) -> None:
    """Bring every file into `folder`, see `transfer.fetch`. open_web: makes a worker's session.

    Raises the first failure of any file.
    """
    pending: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in files:
        pending.put(file)
    stop, outcomes = threading.Event(), queue.SimpleQueue[BaseException | None]()

    def work() -> None:
        web = open_web(stop)
        try:
            while not stop.is_set():
                try:
                    file = pending.get_nowait()
                except queue.Empty:
                    break
                fetch(file, folder, web, partial(watcher.moved, file.path))
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)
        finally:
            web.close()

    # Threads of an executor would be waited for when the process ends, up to the time limit of a dead connection.
    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(files)))]
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            if (error := _next(outcomes)) is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + _LINGER
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))


def _next(outcomes: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        try:
            outcome = outcomes.get(timeout=_TICK)
        except queue.Empty:
            continue
        if not isinstance(outcome, Stopped):
            return outcome
        return None
