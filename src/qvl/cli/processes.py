"""A run of several processes: started by Paddle's launcher, shown as one run, stopped and ended together.

The launcher gives its processes three seconds after a signal, too few for an update and a checkpoint. So signals go
from here to the processes themselves, which agree on the update they stop after; the launcher only waits for them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from qvl.cli.watch import EVERY_UPDATE, LiveLine
from qvl.environment import physical_cores
from qvl.errors import DeviceError, QvlError, UsageError
from qvl.training.stopping import (
    FOLDER,
    PARENT,
    PATIENCE,
    Outcome,
    StoppedError,
    read_outcomes,
)

_LOG = "workerlog.{}"
_FAILED = re.compile(r"Container rank (\d+) status failed .* code (-?\d+) log ")
# How libraries tell that another process is gone.
_LOST = re.compile(r"gloo|nccl|connection|peer|broken pipe|timed? ?out", re.IGNORECASE)
# The launcher writes the whole environment here, in which there may be passwords.
_ENVIRONMENTS = ("envlog.*", "backup_env.*.json", "*.log")
_POLL = 0.1


@dataclass(frozen=True)
class Nodes:
    """Machines that share a run. master: HOST:PORT of the first, free there. rank: of this one, counted from 0."""

    count: int
    master: str
    rank: int

    @staticmethod
    def asked(count: int | None, master: str | None, rank: int | None) -> Nodes | None:
        """From the flags of those names, which come together. None for one machine. Raises UsageError."""
        if (count or 1) == 1 and master is None and rank is None:
            return None
        if count is None or master is None or rank is None:
            raise UsageError("several machines need --nnodes, --master and --rank, all three")
        if not re.fullmatch(r"[^\s:]+:\d{1,5}", master):
            raise UsageError(f"--master {master}: HOST:PORT of the first machine was expected")
        if rank >= count:
            raise UsageError(f"--rank {rank}: of {count} machines the last is {count - 1}")
        return Nodes(count, master, rank)

    def arguments(self) -> list[str]:
        return ["--nnodes", str(self.count), "--master", self.master, "--rank", str(self.rank)]


@dataclass(frozen=True)
class Processes:
    """What to start: a process for each of `devices` ("0,1"), or `count` of them that share the CPUs.

    nodes: the machines that do likewise, where there are several.
    """

    count: int
    devices: str | None
    logs: Path
    nodes: Nodes | None = None

    @property
    def size(self) -> int:
        return len(self.devices.split(",")) if self.devices else self.count

    def command(self, arguments: Sequence[str]) -> list[str]:
        entry = Path(__file__).with_name("__main__.py")
        which = ["--devices", self.devices] if self.devices else ["--nproc_per_node", str(self.count)]
        if self.nodes is not None:
            which += self.nodes.arguments()
        launcher = [sys.executable, "-m", "paddle.distributed.launch", *which, "--log_level", "ERROR"]
        return [*launcher, "--log_dir", str(self.logs), str(entry), *arguments]

    def environment(self) -> dict[str, str]:
        """The launcher imports Paddle itself, which warns of more than one thread; its processes share the cores."""
        share = str(max(1, physical_cores() // self.size))
        quiet = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        return {"QVL_THREADS": share, **os.environ, **quiet, PARENT: str(os.getpid())}


def log_folder(output: Path, nodes: Nodes | None = None) -> Path:
    """Where the processes of this machine write. Several machines may share the output."""
    logs = output / "logs"
    if nodes is not None:
        return logs / f"{nodes.rank}-{socket.gethostname()}"
    return logs / socket.gethostname() if nodes_of_environment() > 1 else logs


def nodes_of_environment() -> int:
    """How many machines the launcher's own variable names, which may be a range such as 2:4: then the fewest."""
    first = os.environ.get("PADDLE_NNODES", "1").partition(":")[0]
    return int(first) if first.isdecimal() else 1


def run_processes(processes: Processes, arguments: Sequence[str], line: LiveLine) -> list[Outcome]:
    """Run the command line in several processes; what the first one notes is shown.

    Returns how they ended when all did well. Raises StoppedError after a signal, and QvlError, with the message of the
    process that failed first; no process is left then.
    """
    logs = processes.logs
    try:
        logs.mkdir(parents=True, exist_ok=True)
        logs.chmod(0o700)  # for what the launcher writes there
    except OSError as error:
        raise QvlError(f"{logs}: cannot be written ({error.strerror or error})") from None
    tail = _Tail(logs / _LOG.format(0))
    with tempfile.TemporaryDirectory(prefix="qvl-") as ended, tempfile.TemporaryFile("w+", errors="replace") as words:
        # In a session of its own: a Ctrl-C in the terminal is for us alone.
        with (
            _Signals() as asked,
            subprocess.Popen(
                processes.command(arguments),
                env=processes.environment() | {FOLDER: ended} | ({EVERY_UPDATE: "1"} if line.live else {}),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
            ) as launcher,
        ):
            try:
                while launcher.poll() is None:
                    tail.follow(line.repeat)
                    asked.pass_on(launcher.pid)
                    time.sleep(_POLL)
            finally:
                _end(launcher)
        tail.follow(line.repeat)
        words.seek(0)
        said, outcomes = words.read(), read_outcomes(Path(ended))
    for pattern in _ENVIRONMENTS:
        for path in logs.glob(pattern):
            path.unlink(missing_ok=True)
    _raise_failure(processes, outcomes, said, launcher.returncode, asked.received)
    return outcomes


class ProcessError(QvlError):
    """What ended a run of several processes."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def _raise_failure(
    processes: Processes, outcomes: Sequence[Outcome], said: str, code: int, asked: Sequence[int]
) -> None:
    """An error that a process named comes first, then a stop that was asked for, then what else ended the run."""
    foreseen = _foreseen(processes, outcomes)
    if foreseen is not None:
        raise foreseen
    stopped = [outcome.stopped_by for outcome in outcomes if outcome.stopped_by]
    # What they say of themselves counts: a process may be aborted at its very end, by that of another.
    complete = not stopped and (code == 0 or sum(outcome.code == 0 for outcome in outcomes) == processes.size)
    if (asked or stopped) and not complete:
        raise StoppedError(asked[0] if asked else stopped[0])
    if not complete:
        raise _unforeseen(processes, outcomes, said, code)


def _foreseen(processes: Processes, outcomes: Sequence[Outcome]) -> QvlError | None:
    foreseen = sorted((o for o in outcomes if o.code and o.foreseen), key=lambda o: o.when)
    if foreseen:
        first = foreseen[0]
        # What all of them find, such as a sample that is broken, is not the fault of one.
        where = "" if len({o.message for o in foreseen}) == 1 < len(foreseen) else _name(processes, first.local)
        return ProcessError(f"{where}{first.message}", first.code)
    return None


def _unforeseen(processes: Processes, outcomes: Sequence[Outcome], said: str, code: int) -> QvlError:
    """Which process failed first: the others fail of losing it, or are ended by the launcher."""
    ended = {int(rank): int(number) for rank, number in _FAILED.findall(said)}
    silent = sorted(set(range(processes.size)) - {outcome.local for outcome in outcomes})
    # A process whose neighbour is gone is aborted by gloo, and says so; one that was killed says nothing.
    lost = [rank for rank in silent if "terminate called" in _end_of(processes.logs / _LOG.format(rank))]
    killed = [rank for rank in silent if rank not in lost and ended.get(rank) != -signal.SIGTERM]
    unforeseen = sorted((o for o in outcomes if o.code), key=lambda o: o.when)
    # One that the launcher says nothing of may as well have been ended by it, because of an error that has words.
    speaks = bool(unforeseen) and not _LOST.search(unforeseen[0].message)
    killed = [rank for rank in killed if rank in ended or not speaks]
    if killed and ended:
        rank = killed[0]
        number = ended.get(rank)
        how = f"was ended by {signal.Signals(-number).name}" if number and number < 0 else "ended without a word"
        hint = "; is there enough memory?" if number == -signal.SIGKILL or number is None else ""
        return ProcessError(f"{_name(processes, rank)}{how}{hint}", 1)
    if unforeseen:
        return ProcessError(f"{_name(processes, unforeseen[0].local)}{unforeseen[0].message}", 1)
    lines = [line for line in said.splitlines() if line.strip()]
    if not ended:
        return DeviceError(f"the processes could not be started: {lines[-1] if lines else f'exit code {code}'}")
    rank = min(ended)
    return ProcessError(f"{_name(processes, rank)}failed with exit code {ended[rank]}", 1)


def _name(processes: Processes, rank: int) -> str:
    return f"process {rank} ({processes.logs / _LOG.format(rank)}): "


def _end_of(path: Path, size: int = 4000) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    return ""


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, whatever happened here."""
    if launcher.poll() is not None:
        return
    for process in _children(launcher.pid):
        with contextlib.suppress(psutil.Error):
            process.kill()
    launcher.kill()
    launcher.wait()


def _children(launcher: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for child in psutil.Process(launcher).children() if child.status() != psutil.STATUS_ZOMBIE]
    return []


class _Signals:
    """SIGINT and SIGTERM for the whole run: the first one asks every process to stop, a later one ends them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._first = 0.0
        self._final = False
        self._told: set[int] = set()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Signals:
        self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if not self.received:
            self._first = now
        self.received.append(number)
        self._final = self._final or now - self._first > PATIENCE

    def pass_on(self, launcher: int) -> None:
        """To each process once, also to those that start later. A launcher that has none yet ends of it itself."""
        if not self.received:
            return
        children = _children(launcher)
        if not children and not self._told:
            self._told.add(launcher)
            with contextlib.suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGTERM)
        for child in children:
            with contextlib.suppress(psutil.Error):
                if self._final:
                    child.kill()
                elif child.pid not in self._told:
                    self._told.add(child.pid)
                    child.send_signal(signal.SIGTERM)


class _Tail:
    """What a growing file gets from now on, in whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.is_file() else 0
        self._rest = b""

    def follow(self, show: Callable[[str], None]) -> None:
        with contextlib.suppress(OSError):
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                show(line.decode("utf-8", "replace"))
