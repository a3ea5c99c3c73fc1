"""What happens at each update of a run: it is recorded, judged, saved and ended here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddlenlp.trainer import TrainerCallback

from qvl.training.loader import Source
from qvl.training.parts import complete_gradients
from qvl.training.record import StepRecord
from qvl.training.shards import average
from qvl.training.sums import together

if TYPE_CHECKING:
    from qvl.training.trainer import SftTrainer


@dataclass(frozen=True)
class Evaluation:
    """Examples held out, how often to look, and who is told; on_loss says whether it is the best so far."""

    source: Source
    every: int
    on_loss: Callable[[int, float], bool]


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
        self._started = time.perf_counter()

    on_save = on_train_begin  # what a checkpoint took is no update's

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
        # Not for being stopped: whoever stops a run may not wait that long, and it is to go on as an unbroken one.
        if evaluation and (complete or state.global_step % evaluation.every == 0):
            loss = trainer.held_out_loss(evaluation.source)
            if evaluation.on_loss(state.global_step, loss):
                trainer.best_step, control.should_save = state.global_step, True
        self._started = time.perf_counter()  # before the loader is asked: an update may have to wait for its samples
