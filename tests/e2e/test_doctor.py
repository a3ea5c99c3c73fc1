"""`qvl doctor` as users run it: the real program, which asks Paddle in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Environment variables without wishes, and an empty store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QVL_", "OMP_", "HF_"))}
    return {**kept, "QVL_HOME": str(tmp_path), "QVL_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}


def run(surroundings: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "qvl.cli", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=surroundings)
    return done.returncode, done.stdout, done.stderr


def test_the_screen_and_the_json_of_a_machine(surroundings: dict[str, str], tmp_path: Path) -> None:
    code, out, err = run(surroundings, "--threads", "1")
    assert (code, err) == (0, "")
    assert out.startswith("qvl ") and max(map(len, out.splitlines())) <= 80 and "\x1b" not in out
    assert "\nthreads    1: --threads says so\n" in out
    code, out, err = run({**surroundings, "QVL_THREADS": "1", "FLAGS_check_nan_inf": "1"}, "--json")
    report = json.loads(out)
    assert (code, err, report["ok"]) == (0, "", True)
    assert report["threads"] == {"count": 1, "reason": "QVL_THREADS says so"}
    assert report["paddle"]["prepared"]["OMP_NUM_THREADS"] == "1"
    assert report["paddle"]["flags"]["FLAGS_check_nan_inf"] == "True"
    assert report["environment"]["FLAGS_check_nan_inf"] == "1"
    assert list(tmp_path.iterdir()) == []  # it looks, and leaves nothing behind


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--profile", "7b"], {}, "Qwen/Qwen2-VL-7B-Instruct is not on this machine"),
        (["--device", "gpu:99"], {}, "--device gpu:99"),
        ([], {"QVL_OPS": "nativ"}, "QVL_OPS=nativ is not known"),
        ([], {"QVL_THREADS": "none"}, "QVL_THREADS must be a whole number"),
    ],
)
def test_what_will_not_work_is_said_and_is_the_exit_code(
    surroundings: dict[str, str], arguments: list[str], variables: dict[str, str], words: str
) -> None:
    code, out, err = run({**surroundings, **variables}, "-q", *arguments)
    assert (code, err) == (1, "")
    assert words in " ".join(out.split())


@pytest.mark.skipif(psutil.virtual_memory().total > 2**38, reason="the 72B might fit here")
def test_the_largest_model_does_not_fit(surroundings: dict[str, str]) -> None:
    code, out, _ = run(surroundings, "-q", "--profile", "72b", "--device", "cpu")
    assert code == 1 and "profile 72b does not fit" in " ".join(out.split())


def test_a_model_that_is_here_will_work_by_its_folder(surroundings: dict[str, str], tiny_checkpoint: Path) -> None:
    assert run(surroundings, "-q", "--model", str(tiny_checkpoint), "--device", "cpu") == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_that_want_them(surroundings: dict[str, str], no_color: bool) -> None:
    import pty

    master, slave = pty.openpty()
    variables = {**surroundings, "TERM": "xterm", **({"NO_COLOR": "1"} if no_color else {})}
    variables = variables if no_color else {name: text for name, text in variables.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "qvl.cli", "doctor", "--device", "gpu:99"]
    process = subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, env=variables)
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # how the end looks on Linux
            break
        if not block:
            break
        shown += block
    assert process.wait(timeout=300) == 1
    assert b"gpu:99" in shown
    assert (b"\x1b[1;31m" in shown or b"\x1b[31" in shown) != no_color
    os.close(master)
