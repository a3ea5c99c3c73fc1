"""What happens at each update of a run: it is recorded, judged, saved and ended here."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from qvl.training.homes import import_paddlenlp
from qvl.training.loader import Source
from qvl.training.parts import complete_gradients
from qvl.training.record import StepRecord
from qvl.training.shards import average
from qvl.training.sums import together
from qvl.training.trainer import SftTrainer, StopNowError

import_paddlenlp()

from paddlenlp.trainer import TrainerCallback  # noqa: E402


@dataclass(frozen=True)
class Evaluation:
    """Examples held out, how often to look, and who is told.

    on_loss: says whether it is the best so far, or None when it was broken off by a wish to stop and does not count;
    all processes say the same. judged: after which updates an earlier sitting of the run has looked.
    """

    source: Source
    every: int
    on_loss: Callable[[int, float], bool | None]
    judged: Container[int] = ()

    def due(self, step: int, last: int) -> bool:
        return step >= last or step % self.every == 0


class Recorder(TrainerCallback):
    """Gives each finished update to `on_step`, saves when due or asked to, and stops when asked to."""

    def __init__(
        self,
        on_step: Callable[[StepRecord], None],
        *,
        seed: int,
        save_steps: int,
        wants_stop: Callable[[], bool],
        evaluation: Evaluation | None = None,
    ) -> None:
        self.trainer: SftTrainer | None = None
        self._evaluation = evaluation
        self._on_step, self._seed, self._save_steps, self._wants_stop = on_step, seed, save_steps, wants_stop
        self._started = 0.0
        self._learning_rate = self._grad_norm = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        assert self.trainer is not None
        evaluation, step = self._evaluation, state.global_step
        # After the checkpoint, to which the run goes back, came the evaluation, which did not get to its end.
        if evaluation and step and evaluation.due(step, state.max_steps) and step not in evaluation.judged:
            if not self._judge(evaluation, step):
                self.trainer.stopped = True
                raise StopNowError
            self.trainer.rotate()
        self._started = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._started = time.perf_counter()  # what a checkpoint took is no update's

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        assert self.trainer is not None
        self.trainer.update_loss, self.trainer.update_tokens = 0.0, [0, 0]
        # Dropout draws from the step's own seed, so that a resumed run needs no state of the generator.
        replica = self.trainer.arrangement.replica
        paddle.seed(int(np.random.PCG64([self._seed, state.global_step, replica]).random_raw() >> 33))

    def on_optimizer_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        assert self.trainer is not None
        self._learning_rate = float(self.trainer.lr_scheduler.get_lr())
        trainer = self.trainer
        if trainer.shared_out is not None:
            average(trainer.learning(), trainer.shared_out.shards)
        complete_gradients(trainer.learning(), trainer.part, trainer.config)
        self._grad_norm = trainer.update_norm = trainer.grad_norm()
        trainer.refuse_nan("gradient norm", self._grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        trainer = self.trainer
        if trainer.shared_out is not None:
            trainer.shared_out.refresh()
        # A signal reaches the processes at different moments; they have to stop after the same update.
        asked = float(self._wants_stop())
        sums = [trainer.update_loss / args.world_size, *map(float, trainer.update_tokens), asked]
        if args.world_size > 1:
            sums = together(sums)
        loss, supervised, tokens, asked = sums
        parts = trainer.part.size  # which all have seen the same samples
        record = StepRecord(
            step=state.global_step,
            loss=loss,
            learning_rate=self._learning_rate,
            grad_norm=self._grad_norm,
            supervised_tokens=int(supervised) // parts,
            tokens=int(tokens) // parts,
            epoch=trainer.loader.plan.epoch_of(state.global_step),
            seconds=time.perf_counter() - self._started,
        )
        self._on_step(record)
        complete = state.global_step >= state.max_steps
        if not complete and (asked or (args.world_size == 1 and self._wants_stop())):
            control.should_training_stop = trainer.stopped = True
        control.should_save = complete or trainer.stopped or state.global_step % self._save_steps == 0
        evaluation = self._evaluation
        # Not when it is to stop: whoever stops a run may not wait that long. It is made up for by `on_train_begin`.
        if evaluation and not trainer.stopped and evaluation.due(state.global_step, state.max_steps):
            self._evaluate(evaluation, state, control)
        self._started = time.perf_counter()  # before the loader is asked: an update may have to wait for its samples

    def _evaluate(self, evaluation: Evaluation, state: Any, control: Any) -> None:
        """Judge, with the checkpoint written before where one is due: it may take long, and be cut short by a kill."""
        assert self.trainer is not None
        trainer, step = self.trainer, state.global_step
        saved = control.should_save
        if saved:
            trainer.save()
        finished = self._judge(evaluation, step)
        # The wish may be a new one; after the last update it comes too late for all but what is broken off.
        if not finished or (step < state.max_steps and self._wanted_by_any()):
            control.should_training_stop = trainer.stopped = True
        control.should_save = not saved and (trainer.stopped or trainer.best_step == step)
        if saved:
            trainer.rotate()  # the best may be another now

    def _judge(self, evaluation: Evaluation, step: int) -> bool:
        """Whether it got to its end, and was not broken off."""
        assert self.trainer is not None
        loss = self.trainer.held_out_loss(evaluation.source, self._wanted_by_any)
        best = None if loss is None else evaluation.on_loss(step, loss)
        if best:
            self.trainer.best_step = step
        return best is not None

    def _wanted_by_any(self) -> bool:
        """Whether a process is asked to stop, which the others may not be yet. Called by all together."""
        assert self.trainer is not None
        asked = self._wants_stop()
        return together([float(asked)])[0] > 0 if self.trainer.args.world_size > 1 else asked
