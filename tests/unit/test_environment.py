"""Before Paddle is imported: numbers of threads, and signals that arrive while it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from qvl import environment
from qvl.errors import UsageError

pytestmark = pytest.mark.slow  # programs are started

WAITING = """
from qvl import environment
print("begun", flush=True)
environment.prepare()
import time
print("ready", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are as they were after each test, and Paddle as good as not imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "QVL_THREADS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(environment, "_chosen", False)
    monkeypatch.delitem(sys.modules, "paddle", raising=False)


@pytest.mark.parametrize("text", ["0", "-1", "two", "2,4", "100000", "9" * 5000, "\x1b[31m"])
def test_a_number_of_threads_that_cannot_be_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_THREADS", text)
    with pytest.raises(UsageError, match="QVL_THREADS must be a whole number from 1 to ") as caught:
        environment.set_threads(None)
    assert str(caught.value).isprintable()


def test_a_hundred_thousand_threads_are_refused_before_paddle_crashes() -> None:
    with pytest.raises(UsageError, match=f"--threads must be a whole number from 1 to {environment.most_threads()}, "):
        environment.set_threads(100_000)
    environment.set_threads(environment.most_threads())
    assert os.environ["OMP_NUM_THREADS"] == str(environment.most_threads()) and environment.most_threads() >= 64


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), ("2,4", 2), ("0,4", 4), ("0", None), ("many", None), ("100000", None)]
)
def test_a_list_of_openmp_threads_is_no_error(text: str, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    environment.set_threads(None)
    assert os.environ["OMP_NUM_THREADS"] == str(expected or environment.physical_cores())


def interrupt(number: signal.Signals, word: str, delay: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process sent a signal `delay` seconds after it said a word."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = ""
    while not said.endswith(f"{word}\n"):
        said += process.stdout.readline()
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, said + out, err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.3, 0.4, 0.5])
def test_ctrl_c_while_paddle_is_imported_ends_at_once_and_in_silence(delay: float) -> None:
    ended = interrupt(signal.SIGINT, "begun", delay)
    assert ended in [(130, "begun\n", ""), (0, "begun\nready\ninterrupted\n", "")]  # the latter on a fast machine


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.35, 0.5])
def test_sigterm_while_paddle_is_imported_prints_no_trace(delay: float) -> None:
    code, out, err = interrupt(signal.SIGTERM, "begun", delay)
    assert (code, err) == (-signal.SIGTERM, "") and out in ("begun\n", "begun\nready\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_signals_after_paddle_is_imported_are_pythons_own() -> None:
    assert interrupt(signal.SIGTERM, "ready", 0) == (-signal.SIGTERM, "begun\nready\n", "")
    assert interrupt(signal.SIGINT, "ready", 0.1) == (0, "begun\nready\ninterrupted\n", "")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n", None),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 fma\n", "5"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 avx512f avx512dq avx512cd avx512bw\n", "5"),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n", "7"),
        ("vendor_id\t: AuthenticAMD\n", "5"),
        ("", None),
    ],
)
def test_mkl_is_told_of_the_best_path_an_amd_cpu_has(
    told: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_cpu_told", lambda: told)
    assert environment._mkl_path() == expected
