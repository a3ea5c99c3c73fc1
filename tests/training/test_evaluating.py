"""Held-out samples are judged after the checkpoint, and a run that is stopped or killed meanwhile loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qvl.processing.prompt import Example
from qvl.training.checkpoints import list_checkpoints
from qvl.training.recorder import Evaluation
from tests.training.support import training_example
from tests.training.test_trainer import BATCH, Harness, recipe

LAST = 5


class Killed(BaseException):
    """In the place of a kill: nothing that follows is done."""


@dataclass
class Judged:
    """A run of five updates that is judged after the second, fourth and last, and saves after every second.

    on_update: called with the last update whenever the run asks whether to stop. on_read: when a held-out example is
    read, with how many that makes; on_loss: when all were.
    """

    folder: Path
    output: Path
    on_update: Callable[[int], None] = lambda _: None
    on_read: Callable[[int], None] = lambda _: None
    on_loss: Callable[[int], None] = lambda _: None
    best: tuple[int, ...] = ()
    asked: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    judged: list[tuple[int, float]] = field(default_factory=list)
    reads: int = 0

    def __post_init__(self) -> None:
        self.examples = [training_example(name, self.folder) for name in BATCH]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        self.on_read(self.reads)
        return self.examples[index]

    def stop(self, *_: int) -> None:
        self.asked = True

    def saved(self) -> list[int]:
        return [step for step, _ in list_checkpoints(self.output)]

    def run(self, *, resume: bool = False) -> None:
        """What was judged before counts, as that of `eval.jsonl` does."""
        self.asked, self.reads = False, 0
        start = self.saved()[-1] if resume else 0
        self.losses = [record for record in self.losses if record[0] <= start]
        self.judged = [record for record in self.judged if record[0] <= start]

        def on_loss(step: int, loss: float) -> bool:
            self.on_loss(step)
            self.judged.append((step, loss))
            return step in self.best

        evaluation = Evaluation(self, 2, on_loss, [step for step, _ in self.judged])
        options = recipe(save_steps=2, save_total_limit=1)

        def wants_stop() -> bool:
            if self.harness.records:
                self.on_update(self.harness.records[-1].step)
            return self.asked

        self.harness = Harness(
            self.folder, self.examples, self.output, options, LAST, evaluation=evaluation, wants_stop=wants_stop
        )
        try:
            self.stopped = self.harness.run(resume=resume).stopped
        finally:
            self.losses += [(record.step, record.loss) for record in self.harness.records]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    run = Judged(tiny_checkpoint, tmp_path_factory.mktemp("whole"))
    run.run()
    assert [step for step, _ in run.judged] == [2, 4, LAST] and not run.stopped
    return run


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path) -> Judged:
    return Judged(tiny_checkpoint, tmp_path)


def nothing(_: int) -> None:
    pass


def assert_goes_on_as(run: Judged, whole: Judged) -> None:
    run.on_read = run.on_loss = nothing
    run.run(resume=True)
    assert (run.judged, run.losses, run.stopped) == (whole.judged, whole.losses, False)


def test_a_signal_while_samples_are_judged_breaks_off_at_once(run: Judged, whole: Judged) -> None:
    run.on_read = run.stop
    run.run()
    assert run.stopped and (run.reads, run.judged, run.saved(), len(run.losses)) == (1, [], [2], 2)
    run.run(resume=True)  # and while it is made up for
    assert run.stopped and (run.reads, run.judged, run.saved(), len(run.losses)) == (1, [], [2], 2)
    assert_goes_on_as(run, whole)


def test_a_signal_before_samples_are_judged_puts_that_off(run: Judged, whole: Judged) -> None:
    run.on_update = lambda step: run.stop() if step == 2 else None
    run.run()
    assert run.stopped and (run.reads, run.judged, run.saved(), len(run.losses)) == (0, [], [2], 2)
    run.on_update = nothing
    assert_goes_on_as(run, whole)


def test_a_signal_that_comes_when_all_are_judged_stops_after_that_update(run: Judged, whole: Judged) -> None:
    run.on_loss = run.stop
    run.run()
    assert run.stopped and (run.judged, run.saved(), len(run.losses)) == (whole.judged[:1], [2], 2)
    assert_goes_on_as(run, whole)


def test_the_last_judgement_is_made_up_for_as_well(run: Judged, whole: Judged) -> None:
    run.on_read = lambda count: run.stop() if count > 2 * len(run) else None
    run.run()
    assert run.stopped and (run.judged, run.saved()) == (whole.judged[:2], [LAST])
    assert_goes_on_as(run, whole)


def test_a_checkpoint_is_there_before_samples_are_judged_and_the_best_one_stays(run: Judged, whole: Judged) -> None:
    run.best = (2,)
    seen: list[list[int]] = []
    run.on_loss = lambda _: seen.append(run.saved())
    run.run()
    assert seen == [[2], [2, 4], [2, LAST]] and run.saved() == [2, LAST]
    assert (run.judged, run.losses) == (whole.judged, whole.losses)


def test_a_best_one_of_before_goes_when_another_is_best(run: Judged) -> None:
    run.best = (2, 4, LAST)
    seen: list[list[int]] = []
    run.on_loss = lambda _: seen.append(run.saved())
    run.run()
    assert seen == [[2], [2, 4], [4, LAST]] and run.saved() == [LAST]


def test_a_run_that_is_killed_while_samples_are_judged_judges_them_when_it_goes_on(run: Judged, whole: Judged) -> None:
    def kill(step: int) -> None:
        if step == 4:
            raise Killed

    run.on_loss = kill
    with pytest.raises(Killed):
        run.run()
    assert (run.judged, run.saved()) == (whole.judged[:1], [4])
    run.best = (4,)
    assert_goes_on_as(run, whole)
    assert run.saved() == [4, LAST]
