"""The program with standard streams that are closed or full, as a shell makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qvl
from qvl.cli import render

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a shell and /dev/full")

# The error is one that comes before Paddle is imported.
COMMANDS = {"--version": 0, "--help": 0, "infer --help": 0, "profiles": 0, "profiles 7b": 0, "infer -p x --fps 0": 2}
FULL = "qvl: error: standard output: No space left on device\n"


def shell(arguments: str, redirection: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    command = f'PYTHONUNBUFFERED={unbuffered} exec "{sys.executable}" -m qvl.cli {arguments} {redirection}'
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output_is_like_dev_null(command: str) -> None:
    run = shell(command, ">&-")
    assert run.returncode == COMMANDS[command]
    assert run.stderr.count("\n") == (1 if COMMANDS[command] else 0)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [command for command, code in COMMANDS.items() if code == 0])
def test_a_full_disk_behind_standard_output_is_one_line(command: str, unbuffered: str) -> None:
    run = shell(command, ">/dev/full", unbuffered)
    assert (run.returncode, run.stderr) == (1, FULL)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_meant_for_standard_error_gets_into_standard_output(command: str, redirection: str) -> None:
    run = shell(command, redirection)
    assert run.returncode == COMMANDS[command]
    assert run.stdout == shell(command, "").stdout
    assert "qvl: error" not in run.stdout


def test_what_is_being_done_fits_the_terminal_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output may be a pipe meanwhile, or a wider terminal."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 30, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with render.status("encoding pictures, clips and the prompt", False):
            shown = os.read(master, 1000).decode()
    os.close(master)
    assert shown == "qvl: encoding pictures, clips"


def test_all_streams_may_be_closed() -> None:
    assert shell("--version", "<&- >&- 2>&-").returncode == 0
    assert shell("--version", "<&- 2>&-").stdout == f"qvl {qvl.__version__}\n"
