"""Answers to held-out samples while a run is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from qvl.training.finetune import Reporter
from qvl.training.judging import Judge
from tests.training.test_runs import Silent, laid_out


@pytest.fixture
def reporter(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[[Any], Reporter]:
    """`reporter(judging)`: of a run that asks about two held-out samples."""
    asking = {"eval_split": 0.5, "eval_answers": 2}
    run = laid_out(data / "data.json", tiny_checkpoint, tmp_path / "out", training=asking)
    return lambda answer: Reporter(run, 0, Silent(), Judge(run, Mock(), answer))


def test_a_wish_to_stop_breaks_the_answers_off_and_nothing_is_recorded(
    reporter: Callable[[Any], Reporter], tmp_path: Path
) -> None:
    given: list[str] = []

    def answer(*_: object) -> str:
        given.append("An answer.")
        return given[-1]

    reports = reporter(answer)
    assert reports.evaluated(2, 1.0, lambda: len(given) == 1) is None
    assert len(given) == 1 and (tmp_path / "out" / "eval.jsonl").read_text() == ""
    assert reports.best_step is None
    assert reports.evaluated(2, 1.0, lambda: False) is True
    assert len(given) == 3 and reports.best_step == 2
    assert (tmp_path / "out" / "eval.jsonl").read_text().count("An answer.") == 2
    reports.close()
