"""The workers of a split model: started, asked, and ended, whatever happens to any of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, Listener, wait
from typing import IO, Any

from qvl.environment import threads
from qvl.errors import DeviceError, QvlError
from qvl.runtime.split import calls

_START = 180.0  # seconds for a worker to import Paddle and call back
_LEAVE = 3.0  # seconds for workers to end by themselves, and to see which of them was the first to die


class WorkerError(QvlError):
    """What ended the workers, with the exit code of the error of one of them."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Crew:
    """A process for each device. Ends with `close`, when it is collected, or with this process."""

    def __init__(self, devices: Sequence[str]) -> None:
        """devices: as Paddle names them. Raises DeviceError when a worker does not come up."""
        self.devices = tuple(devices)
        self._asking: threading.Thread | None = None
        self._failure: QvlError | None = None
        self._logs = [tempfile.TemporaryFile("w+", errors="replace") for _ in devices]  # noqa: SIM115 -- see _end
        self._workers: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._close = weakref.finalize(self, _end, self._workers, self._connections, self._logs)
        try:
            self._start()
        except BaseException:
            self._close()
            raise

    def _start(self) -> None:
        key = secrets.token_bytes(32)
        with Listener(authkey=key) as listener, contextlib.ExitStack() as stack:
            ports = [stack.enter_context(_free_port()) for _ in self.devices]
            ends = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
            stack.close()  # for the workers to take
            for rank, device in enumerate(self.devices):
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "qvl.runtime.split.worker"],
                        env=self._environment(rank, device, ends)
                        | {calls.ADDRESS: listener.address, calls.KEY: key.hex()},
                        stdin=subprocess.DEVNULL,
                        stdout=self._logs[rank],
                        stderr=self._logs[rank],
                        start_new_session=True,  # a Ctrl-C in the terminal is for the engine's process alone
                    )
                )
            met: dict[int, Connection] = {}
            deadline = time.monotonic() + _START
            listening = listener._listener._socket  # type: ignore[attr-defined]  # there is no accept with a limit
            listening.settimeout(0.2)
            while len(met) < len(self.devices):
                with contextlib.suppress(TimeoutError):
                    connection = listener.accept()
                    met[int(connection.recv())] = connection
                if any(worker.poll() is not None for worker in self._workers) or time.monotonic() > deadline:
                    ended = [rank for rank, worker in enumerate(self._workers) if worker.poll() is not None]
                    words = self._last_words(ended[0]) if ended else f"no answer in {_START:.0f} s"
                    raise DeviceError(f"the processes of a split model could not be started: {words}")
            self._connections.extend(met[rank] for rank in range(len(self.devices)))

    def _environment(self, rank: int, device: str, ends: Sequence[str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        share = str(max(1, threads() // len(self.devices)))
        return {
            **own,
            "QVL_THREADS": share,
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(len(ends)),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(ends),
            "PADDLE_CURRENT_ENDPOINT": ends[rank],
            "PADDLE_MASTER": ends[0],
            "MASTER_ADDR": "127.0.0.1",  # where they are set, as by a cluster's scheduler, Paddle takes them first
            "MASTER_PORT": ends[0].partition(":")[2],
            "PADDLE_DISTRI_BACKEND": "gloo" if device == "cpu" else "nccl",
            "FLAGS_selected_gpus": device.partition(":")[2] or "0",
            calls.RANK: str(rank),
            calls.SIZE: str(len(ends)),
            calls.DEVICE: device,
            calls.PARENT: str(os.getpid()),
        }

    def ask(self, call: calls.Call, on_progress: Callable[[int, int], None] | None = None) -> list[Any]:
        """Have every worker do it; the answer of each, None where the first one's is that of all.

        Raises QvlError with what went wrong in a worker; none is left then, and every further call raises it again.
        Interrupted, it may be called again at once: what is still being computed is waited for and not used.
        """
        if self._asking is not None:
            self._asking.join()
        if self._failure is not None:
            raise self._failure
        answer: Future[list[Any]] = Future()

        def exchange() -> None:
            try:
                answer.set_result(self._exchange(call, on_progress))
            except BaseException as error:
                answer.set_exception(error)

        # In a thread, so that a Ctrl-C cuts no message in two.
        self._asking = threading.Thread(target=exchange, name="qvl-split", daemon=True)
        self._asking.start()
        return answer.result()

    def _exchange(self, call: calls.Call, on_progress: Callable[[int, int], None] | None) -> list[Any]:
        values: list[Any] = [None] * len(self._connections)
        try:
            for connection in self._connections:
                connection.send(call)
            waiting = list(self._connections)
            while waiting:
                for ready in wait(waiting):
                    connection = next(connection for connection in waiting if connection is ready)
                    said = connection.recv()
                    if isinstance(said, calls.Failure):
                        raise self._failed(said, self._connections.index(connection))
                    if isinstance(said, calls.Progress):
                        if on_progress is not None:
                            on_progress(said.done, said.total)
                        continue
                    waiting.remove(connection)
                    values[self._connections.index(connection)] = said.value
        except (EOFError, OSError):
            raise self._died() from None
        return values

    def close(self) -> None:
        """End all workers. Further calls fail."""
        self._failure = self._failure or QvlError("the processes of this model were ended")
        self._close()

    def _failed(self, failure: calls.Failure, rank: int) -> QvlError:
        """What all of them find, such as a damaged file, is not the fault of one."""
        if not failure.foreseen and self._signalled():
            return self._died()  # what this one says is that it has lost the other
        where = "" if failure.foreseen else f"{self._name(rank)}: "
        self._failure = WorkerError(f"{where}{failure.message}", failure.exit_code)
        self._close()
        return self._failure

    def _died(self) -> QvlError:
        """Which worker died first: the others are aborted by gloo for losing it, or fail."""
        deadline = time.monotonic() + _LEAVE
        while all(worker.poll() is None for worker in self._workers) and time.monotonic() < deadline:
            time.sleep(0.02)
        signalled = self._signalled()
        ended = {rank: code for rank, worker in enumerate(self._workers) if (code := worker.poll()) is not None}
        first = min(signalled or ended, key=lambda rank: (ended[rank] == -signal.SIGABRT, rank), default=0)
        code = ended.get(first)
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else "ended without a word"
        hint = "; is there enough memory?" if code == -signal.SIGKILL else ""
        words = self._last_words(first)
        self._failure = WorkerError(f"{self._name(first)} {how}{hint}{f' ({words})' if words else ''}")
        self._close()
        return self._failure

    def _signalled(self) -> list[int]:
        """The workers that a signal has ended, but for that of gloo; a moment later, so that the system knows of it."""
        time.sleep(0.2)
        codes = enumerate(worker.poll() for worker in self._workers)
        return [rank for rank, code in codes if code is not None and code < 0 and code != -signal.SIGABRT]

    def _name(self, rank: int) -> str:
        device = self.devices[rank]
        return f"part {rank}" if device == "cpu" else f"part {rank} on {device}"

    def _last_words(self, rank: int) -> str:
        log = self._logs[rank]
        log.seek(0)
        lines = [line.strip() for line in log.read()[-4000:].splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _free_port() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken


def _end(workers: list[subprocess.Popen[bytes]], connections: list[Connection], logs: Sequence[IO[str]]) -> None:
    """Leave no process behind: a closed connection ends one that waits for a call, a kill one that waits for a sum."""
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + (_LEAVE if connections else 0)
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    for log in logs:
        log.close()
