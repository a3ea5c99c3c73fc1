"""What is seen of a download: bars on a terminal, a few lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qvl.cli.bars import Bars
from tests.hub.conftest import BIG, Run
from tests.hub.server import Hub


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_for_each_file_and_one_for_all(terminal: Console) -> None:
    bars = Bars(terminal)
    bars.begin([("one.safetensors", 4_000_000, 0), ("two.safetensors", 6_000_000, 2_000_000)])
    bars.moved("one.safetensors", 1_000_000)
    bars.moved("two.safetensors", 1_000_000)
    assert bars._progress is not None
    bars._progress.refresh()
    text = shown(terminal)
    assert all(words in text for words in ("all files", "one.safetensors", "two.safetensors"))
    assert "4.0/10.0 MB" in text and "1.0/4.0 MB" in text and "3.0/6.0 MB" in text
    bars.moved("one.safetensors", 3_000_000)
    tasks = {task.description: task for task in bars._progress.tasks}
    assert not tasks["one.safetensors"].visible and tasks["two.safetensors"].visible
    bars.moved("two.safetensors", -3_000_000)  # the server sent something else
    assert bars._progress.tasks[0].completed == 4_000_000
    bars.note("something [odd] to say")
    bars.end()
    bars.moved("two.safetensors", 1)  # a thread that was not told yet
    assert "qvl: something [odd] to say" in shown(terminal)


def test_rate_and_time_left_are_shown(terminal: Console) -> None:
    now = [0.0]
    bars = Bars(terminal)
    bars.begin([("one.safetensors", 30_000_000, 20_000_000)])
    assert bars._progress is not None
    bars._progress.get_time = lambda: now[0]
    for _ in range(3):
        now[0] += 1
        bars.moved("one.safetensors", 1_000_000)
    bars._progress.refresh()
    bars.end()
    assert "1.0 MB/s" in shown(terminal) and "0:00:07" in shown(terminal)


def test_without_a_terminal_there_are_no_bars(hub: Hub, run: Run) -> None:
    code, out, err = run("2b")
    assert code == 0 and hub.sent() and "\r" not in err and "\x1b" not in err and BIG not in err
    assert [line.partition(":")[0] for line in err.splitlines()] == ["qvl"]
    assert out.count("\n") == 1


def test_quiet_says_nothing_but_the_folder(hub: Hub, run: Run) -> None:
    code, out, err = run("2b", "-q")
    assert (code, err) == (0, "") and out.endswith(f"{hub.model}\n")
