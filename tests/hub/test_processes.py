"""Several processes and one model: who waits for whom, and what is left when one is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qvl.errors import CheckpointError
from qvl.hub import lock
from qvl.hub.locate import locate
from qvl.hub.store import partial_folder
from tests.hub.answers import hold, slow, stall
from tests.hub.conftest import BIG, INDEX, NEEDED, SHARDS, Run, is_model
from tests.hub.server import Hub

Start = Callable[..., "subprocess.Popen[str]"]
_LOAD = """
import sys, time
from qvl.hub.locate import locate
print(locate(sys.argv[1]), flush=True)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(...)` is `qvl ...` in a process of its own, which does not outlive the test."""
    running = []

    def call(*arguments: str, code: str | None = None) -> subprocess.Popen[str]:
        program = ["-m", "qvl.cli"] if code is None else ["-c", code]
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_fetch_a_model_once(hub: Hub, start: Start, store: Path) -> None:
    go_on = threading.Event()
    hub.misbehave = lambda asked: hold(1000, go_on) if asked.name == BIG else None
    first = start("download", "2b")
    until(lambda: hub.sent(BIG) > 0)
    second = start("download", "2b")
    assert second.stderr is not None
    waiting = f"qvl: waiting for process {first.pid} on {socket.gethostname()} (qvl download 2b), who has it in work\n"
    assert second.stderr.readline() == waiting
    go_on.set()
    outcomes = [process.communicate(timeout=120) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outcomes
    assert all(out == f"{store / hub.model}\n" for out, _ in outcomes)
    assert is_model(store / hub.model, hub)
    assert hub.sent() == sum(len(hub.files[name]) for name in (*NEEDED, *SHARDS, INDEX))


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_what_had_arrived(hub: Hub, start: Start, run: Run, store: Path) -> None:
    hub.misbehave = lambda asked: hold(160_000, threading.Event()) if asked.name == BIG else None
    process = start("download", "2b")
    partial = partial_folder(store / hub.model)
    until(lambda: any(path.stat().st_size == 160_000 for path in partial.glob("*.part")))
    process.kill()
    process.wait()
    assert not (store / hub.model).exists()
    kept = sum(path.stat().st_size for path in partial.iterdir())
    assert kept >= 160_000
    hub.misbehave = lambda _: None
    hub.asked.clear()
    code, _, err = run("2b")
    assert code == 0 and "waiting" not in err, "the lock of a process that is gone holds nobody up"
    assert is_model(store / hub.model, hub)
    assert hub.sent() == sum(len(hub.files[name]) for name in (*NEEDED, *SHARDS, INDEX)) - kept


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends(hub: Hub, start: Start, run: Run, store: Path) -> None:
    hub.misbehave = lambda _: slow(0.01)
    for wait in (0.3, 0.5, 0.6, 0.7, 0.8):
        process = start("download", "2b")
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_model(store / hub.model, hub) if (store / hub.model).exists() else True
    hub.misbehave = lambda _: None
    assert run("2b")[0] == 0
    assert is_model(store / hub.model, hub)


@pytest.mark.parametrize("where", ["put_in_place", "put_together"])
def test_an_end_while_the_folder_is_put_together_costs_nothing(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        target = "qvl.hub.download.put_in_place" if where == "put_in_place" else "qvl.hub.assemble._check_loadable"
        patched.setattr(target, ended)
        assert run("2b")[0] == 130
    assert not (store / hub.model).exists()
    sent = hub.sent()
    assert run("2b")[0] == 0
    assert is_model(store / hub.model, hub) and hub.sent() == sent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_at_once_even_while_nothing_arrives(hub: Hub, start: Start) -> None:
    hub.misbehave = lambda asked: stall(1000, 60) if asked.name == BIG else None
    process = start("download", "2b")
    until(lambda: hub.sent(BIG) > 0)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert time.monotonic() - begun < 15, "not as long as the connection is waited for"


def test_a_model_that_is_loaded_cannot_be_removed(hub: Hub, start: Start, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    process = start(hub.model, code=_LOAD)
    assert process.stdout is not None and process.stdout.readline() == f"{store / hub.model}\n"
    code, _, err = run("--rm", "2b")
    assert code == 1 and f"in use by process {process.pid} on" in err
    assert is_model(store / hub.model, hub)
    process.kill()
    process.wait()
    assert run("--rm", "2b")[0] == 0
    assert not (store / hub.model).exists()


def test_several_processes_load_a_model_at_once(hub: Hub, start: Start, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    readers = [start(hub.model, code=_LOAD) for _ in range(3)]
    for process in readers:
        assert process.stdout is not None and process.stdout.readline() == f"{store / hub.model}\n"
    code, _, err = run("--rm", "2b")
    assert code == 1 and all(str(process.pid) in err for process in readers)


def test_loading_what_is_being_downloaded_says_by_whom(hub: Hub, start: Start) -> None:
    hub.misbehave = lambda asked: hold(1000, threading.Event()) if asked.name == BIG else None
    process = start("download", "2b")
    until(lambda: hub.sent(BIG) > 0)
    with pytest.raises(CheckpointError, match=f"is being downloaded by process {process.pid} on"):
        locate(hub.model)
    process.kill()
    process.wait()
    with pytest.raises(CheckpointError, match=r"is here in part only; go on with: qvl download 2b$"):
        locate(hub.model)


@pytest.mark.slow
def test_removing_what_is_being_downloaded_is_refused(hub: Hub, start: Start, run: Run) -> None:
    hub.misbehave = lambda asked: hold(1000, threading.Event()) if asked.name == BIG else None
    process = start("download", "2b")
    until(lambda: hub.sent(BIG) > 0)
    code, _, err = run("--rm", "2b")
    assert code == 1 and f"in use by process {process.pid} on" in err


def test_names_of_processes_that_are_gone_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    path.write_text(
        f'{{"pid": {gone.pid}, "host": "{here}", "command": "gone", "since": {time.time()}}}\n'
        f'{{"pid": {os.getpid()}, "host": "{here}", "command": "an older one of my number", "since": 1000}}\n'
        f'{{"pid": {os.getpid()}, "host": "{here}", "command": "me", "since": {time.time()}}}\n'
        '{"pid": 1, "host": "elsewhere", "command": "far", "since": 1}\n'
        "half a li"
    )
    assert [holder.command for holder in lock.holders(path)] == ["me", "far"]


def test_a_lock_is_free_again_when_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.lock"
    with lock.exclusive(path):
        assert lock.held_by(path) is not None
        with pytest.raises(lock.BusyError, match=f"process {os.getpid()} on"), lock.exclusive(path):
            pass
    assert lock.held_by(path) is None
    first, second = lock.shared(path), lock.shared(path)
    assert first is not None and second is not None
    with pytest.raises(lock.BusyError), lock.exclusive(path):
        pass
    first.release()
    second.release()
    with lock.exclusive(path):
        pass
