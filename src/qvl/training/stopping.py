"""How a run is asked to stop, and how one process of several says how it ended. Imports no Paddle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from qvl.errors import QvlError

# Set for the processes of a run by the one that started them: where they say how they ended, and its id.
FOLDER = "_QVL_PROCESS_FOLDER"
PARENT = "_QVL_PROCESS_PARENT"
RANK = "PADDLE_TRAINER_ID"
_LOCAL_SIZE = "PADDLE_LOCAL_SIZE"
_LOCAL_RANK = "PADDLE_LOCAL_RANK"
# Seconds to wait for the others; one that was killed is noticed by the launcher before.
_LEAVE = 60.0
_OUTCOME = "ended-{}.json"

# Seconds in which a repeated signal is the same request: Paddle's launcher sends three in a row.
PATIENCE = 2.0


class StoppedError(QvlError):
    """A signal asked for an end; everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; --resume goes on from here")
        self.signal = number
        self.exit_code = 128 + number


@contextmanager
def signals(kinds: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[list[int]]:
    """Collect signals that ask for an end instead of dying of them. One that comes again after a while is final."""
    asked: list[int] = []
    before = {kind: signal.getsignal(kind) for kind in kinds}
    first = 0.0

    def note(number: int, _frame: object) -> None:
        nonlocal first
        if not asked:
            first = time.monotonic()
        asked.append(number)
        if time.monotonic() - first > PATIENCE:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield asked
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    rank: among all; local: among those of its machine, which is how the launcher counts. foreseen: by an error of ours,
    whose message is for the user. when: seconds since 1970.
    """

    rank: int
    code: int
    message: str = ""
    foreseen: bool = False
    stopped_by: int | None = None
    when: float = 0.0
    local: int = 0

    def write(self, folder: Path) -> None:
        """At once, so that it is whole or not there."""
        path = folder / _OUTCOME.format(self.rank)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(path)


def read_outcomes(folder: Path) -> list[Outcome]:
    """What the processes of a run said, by rank."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(_OUTCOME.format("*")))
    return sorted((Outcome(**fields) for fields in found), key=lambda outcome: outcome.rank)


@contextmanager
def as_one_of_several() -> Iterator[None]:
    """Run what one process of several does, and say how it ended to the one that started them all.

    A stop that was asked for ends with 0: the launcher takes any other code for a failure, and gives the others three
    seconds. Does not return when all is well. Does nothing in a run of one process, or when somebody else started them
    all.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:
        yield
        return
    _stop_without(int(os.environ[PARENT]))
    rank = int(os.environ[RANK])
    local = int(os.environ.get(_LOCAL_RANK, rank))

    def say(code: int, message: str = "", foreseen: bool = False, stopped_by: int | None = None) -> None:
        with contextlib.suppress(OSError):  # a full disk, say, which is then what the error itself is about
            Outcome(rank, code, message, foreseen, stopped_by, time.time(), local).write(Path(folder))

    try:
        yield
    except StoppedError as stop:
        say(0, str(stop), stopped_by=stop.signal)
    except QvlError as error:
        say(error.exit_code, str(error), foreseen=True)
        raise
    except Exception as error:
        say(1, f"{type(error).__name__}: {error}")
        raise
    else:
        say(0)
    _leave_together(Path(folder))


def _leave_together(folder: Path) -> None:
    """End this process when all of this machine are through: gloo aborts one whose neighbour's connection ends."""
    deadline = time.monotonic() + _LEAVE
    while len(read_outcomes(folder)) < int(os.environ.get(_LOCAL_SIZE, "1")) and time.monotonic() < deadline:
        time.sleep(0.02)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # at once: the interpreter's own end takes long enough for the neighbour's to be noticed


def _stop_without(parent: int) -> None:
    """Ask this process to stop when the one that started the run is gone, killed for instance."""

    def watch() -> None:
        while psutil.pid_exists(parent):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="qvl-parent", daemon=True).start()
