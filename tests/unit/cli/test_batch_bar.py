"""How fast a batch goes and how long it will take, by a clock that is set by hand."""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Iterator
from typing import Any

import pytest
from batch_support import Echo
from rich.console import Console
from scripted import Run

from qvl.cli import batch_bar
from qvl.cli.batch_bar import Pace, left_text, rate_text
from qvl.cli.batch_run import Count


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_records_that_take_long_have_a_rate_too() -> None:
    clock = Clock()
    pace = Pace(20, clock)
    assert (pace.rate, pace.left(50)) == (None, None)
    for written in range(21, 31):
        clock.now += 60  # twice as long as rich looks back
        pace.count(written)
    assert pace.rate == pytest.approx(1 / 60)
    assert pace.left(50) == pytest.approx(20 * 60)
    clock.now += 45
    assert pace.left(50) == pytest.approx(20 * 60 - 45)


def test_records_that_end_together_are_not_taken_for_the_rate() -> None:
    clock = Clock()
    pace = Pace(0, clock)
    for bunch in range(5):
        clock.now += 80
        for number in range(8):
            clock.now += 0.01
            pace.count(8 * bunch + number + 1)
    assert pace.rate == pytest.approx(0.1, rel=0.01)
    assert pace.left(100) == pytest.approx(600, rel=0.01)


def test_a_record_that_is_overdue_takes_the_time_left_with_it() -> None:
    clock = Clock()
    pace = Pace(0, clock)
    clock.now += 10
    pace.count(1)
    clock.now += 190
    assert pace.left(3) == pytest.approx(100), "as if the second came now, after 200 s: one more such"
    pace.count(2)
    assert pace.left(3) == pytest.approx(100)
    pace.count(3)
    assert pace.left(3) == 0


@pytest.mark.parametrize(("rate", "text"), [(None, ""), (12.34, "12.3/s"), (0.5, "30.0/min"), (0.01, "36.0/h")])
def test_a_rate_is_said_by_the_unit_that_says_most(rate: float | None, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--:--"), (0.2, "0:00:00"), (59.6, "0:01:00"), (90061, "25:01:01")]
)
def test_the_time_left_is_that_of_a_clock(seconds: float | None, text: str) -> None:
    assert left_text(seconds) == text


def test_a_terminal_shows_a_bar_once_the_model_is_loaded(
    batch: Run, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def progress(run: Any) -> Iterator[None]:
        shown.append((echo.loads, run.count.written))
        yield

    monkeypatch.setattr(batch_bar, "progress", progress)
    batch("-o", "out.jsonl")
    monkeypatch.setattr("qvl.cli.render.is_live", lambda quiet: not quiet)
    batch("-o", "out.jsonl", "--restart", "-q")
    assert shown == []
    batch("-o", "out.jsonl", "--restart")
    assert shown == [(3, 0)]


@pytest.mark.parametrize("known", [True, False])
def test_the_bar_counts_from_the_moment_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    clock, real = Clock(), Pace
    monkeypatch.setattr(batch_bar, "Pace", lambda before: real(before, clock))
    records = types.SimpleNamespace(tickets=list(range(14)) if known else None)
    run: Any = types.SimpleNamespace(job=types.SimpleNamespace(records=records), count=Count(4, 0, 4), on_written=None)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with batch_bar.progress(run, console):
        clock.now += 120
        run.count.written, run.count.failed = 6, 1
        run.on_written(run.count)
    shown = screen.getvalue().splitlines()
    assert any("6/14" in line and "1.0/min 0:08:00 1 failed" in line for line in shown) == known
    assert any("6/?" in line and "1.0/min  1 failed" in line for line in shown) != known
