"""PaddleNLP's Trainer, with our data order, our loss and our checkpoints.

The Trainer gives the loop, mixed precision, gradient accumulation, data parallelism and sharding. What is random is
fixed by the seed and the step alone, so that a run that was interrupted goes on exactly as one that was not.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from qvl.errors import QvlError
from qvl.model.device import Placement
from qvl.profile_training import TrainingOptions
from qvl.training.batch import Batch, collate
from qvl.training.checkpoints import STATE, rotate, write_checkpoint
from qvl.training.groups import separate_stores
from qvl.training.holders import Holders
from qvl.training.homes import import_paddlenlp
from qvl.training.loader import Loader, Source
from qvl.training.model import TrainingModel
from qvl.training.parts import Arrangement, Clip, mark_parts, square_norm
from qvl.training.plan import Plan
from qvl.training.shards import Sharding, own_stage
from qvl.training.state import load_optimizer, save_optimizer
from qvl.training.sums import together

import_paddlenlp()

from paddlenlp.trainer import PrinterCallback, Trainer, TrainerCallback, TrainingArguments  # noqa: E402
from paddlenlp.utils.log import logger  # noqa: E402

logger.set_level("WARNING")  # by default it prints every argument and more, some 150 lines
_OPTIMIZER = "optimizer.safetensors"
_SCHEDULER = "scheduler.json"


class StopNowError(Exception):
    """For callbacks: end `train` before its next update, with nothing to save."""


class SftTrainer(Trainer):
    """Trains a TrainingModel on the batches of a Loader.

    save_weights: writes what the run learns into a folder; load_weights: reads it back from one. give_weights: has the
    process that saves bring what this one has a part of. sharding: where processes have stretches of the model.
    """

    def __init__(
        self,
        model: TrainingModel,
        args: TrainingArguments,
        loader: Loader,
        *,
        save_weights: Callable[[Path], None],
        load_weights: Callable[[Path], None],
        give_weights: Callable[[], None] = lambda: None,
        arrangement: Arrangement | None = None,
        sharding: Sharding | None = None,
        save_total_limit: int,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.config, self.part, self.held = model.qwen.config, model.qwen.part, model.qwen.held
        self.shared_out = sharding
        self.arrangement = arrangement or Arrangement(args.process_index, max(1, args.world_size))
        # The dataset is named for its length only; batches come from the loader.
        super().__init__(model=model, args=args, train_dataset=loader.source, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.loader = loader
        self.save_weights, self.load_weights, self.give_weights = save_weights, load_weights, give_weights
        self.keep = save_total_limit
        self.update_loss = 0.0
        self.update_tokens = [0, 0]  # supervised, all
        self.update_norm = 0.0
        self.stopped = False  # by a signal, before its end
        self.best_step: int | None = None  # whose checkpoint is kept, whatever its age

    @property
    def run(self) -> Path:
        return Path(self.args.output_dir)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        with contextlib.suppress(StopNowError):
            super().train(resume_from_checkpoint=resume_from_checkpoint)

    def learning(self) -> dict[str, paddle.Tensor]:
        """Parameters that learn, by their name in the checkpoint."""
        named = self.model.named_parameters()
        return {name.removeprefix("qwen."): parameter for name, parameter in named if not parameter.stop_gradient}

    def _holders(self) -> Holders:
        """Who keeps what of the optimiser's state: its part each with sharding, else all of it all of them."""
        sharded = self.optimizer._inner_opt._param2rank if self.sharding else {}
        of = {name: sharded[p.name] for name, p in self.learning().items()} if sharded else {}
        return Holders(self.args.process_index, of, self.held, self.config)

    def fill_gradients(self) -> None:
        """Give zeros to parameters that this update does not reach, such as a tower that learns and sees no picture.

        Paddle leaves out one that never had a gradient and moves one that once had, by its momentum: a resumed run
        would not know which it was.
        """
        for parameter in self.learning().values():
            if hasattr(parameter, "main_grad"):  # float32 beside weights of 16 bits
                if parameter.main_grad is None:
                    parameter.main_grad = paddle.zeros_like(parameter, dtype="float32")
            elif parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)

    def grad_norm(self) -> float:
        """Of the update's gradients, before they are clipped. Called by all processes together."""
        holders = self._holders()
        mine = {name: p for name, p in self.learning().items() if holders.has(name)}
        square = square_norm(mine, self.held, self.config)
        if holders.of:  # the others have only seen their own samples' share of these gradients
            square = together([square])[0] / self.part.size
        return float(np.sqrt(square))

    def _wrap_model(self, model: nn.Layer, training: bool = True) -> nn.Layer:
        """With a model in parts, the optimiser alone is fleet's: the parts talk to each other by themselves.

        Shared out, neither is: the model brings together what it needs and what it gives.
        """
        if self.held.size == 1 or not training:
            return super()._wrap_model(model, training)
        from paddle.distributed import fleet
        from paddle.distributed.fleet.utils import mix_precision_utils

        if self.args.amp_master_grad:
            mix_precision_utils.MixPrecisionLayer(model, dtype=self.amp_dtype)
            self.optimizer = mix_precision_utils.MixPrecisionOptimizer(self.adamw)
        if self.shared_out is not None:
            self.args.amp_master_grad = False  # done; and the Trainer would sum them as if each process had all
            return model
        mark_parts(self.learning(), self.part, self.config)
        self.optimizer = fleet.distributed_optimizer(self.optimizer)
        return model

    def training_step(self, model: nn.Layer, inputs: Any, step_control: int = 0) -> paddle.Tensor:
        """Every process has the same gradients to sum, whichever its samples reached."""
        loss = super().training_step(model, inputs, step_control)
        self.fill_gradients()
        return loss

    def _check_loss_valid(self, loss: paddle.Tensor) -> None:
        self.refuse_nan("loss", loss.item())

    def refuse_nan(self, figure: str, value: float) -> None:
        """Raise QvlError for a figure of the update under way that is no number: its weights would be none either."""
        if not math.isfinite(value):
            raise QvlError(
                f"update {self.state.global_step + 1}: the {figure} is {value}, so the run ends before it; try a lower "
                "training.learning_rate, in another output folder"
            )

    def get_train_dataloader(self) -> Loader:
        return self.loader

    def create_optimizer(self, lr_scheduler: Any = None) -> Any:
        """AdamW over the parameters that learn; weight decay on matrices, not on embeddings, norms and biases."""
        learning = self.learning()
        decayed = {p.name for name, p in learning.items() if p.ndim >= 2 and "embed_tokens" not in name}
        limit = self.args.max_grad_norm
        if self.held.size == 1:
            clip = nn.ClipGradByGlobalNorm(limit) if limit > 0 else None
        else:
            clip = Clip(limit, lambda: self.update_norm) if limit > 0 else None
        self.optimizer = self.adamw = paddle.optimizer.AdamW(
            learning_rate=self.lr_scheduler if lr_scheduler is None else lr_scheduler,
            beta1=self.args.adam_beta1,
            beta2=self.args.adam_beta2,
            epsilon=self.args.adam_epsilon,
            parameters=list(learning.values()),
            weight_decay=self.args.weight_decay,
            apply_decay_param_fun=lambda name: name in decayed,
            grad_clip=clip,
            multi_precision=bool(self.args.bf16),
        )
        return self.optimizer

    def compute_loss(self, model: nn.Layer, inputs: Batch, return_outputs: bool = False) -> Any:
        loss = model(inputs)
        # In float64, so that the figure does not depend on how many pieces it was added up from.
        self.update_loss += float(loss) / self.args.gradient_accumulation_steps
        self.update_tokens[0] += len(inputs.targets)
        self.update_tokens[1] += len(inputs.input_ids)
        return (loss, None) if return_outputs else loss

    def held_out_loss(self, source: Source, wants_stop: Callable[[], bool] = lambda: False) -> float | None:
        """The mean loss over all supervised tokens of examples that are not trained on. Ranks share the work.

        wants_stop: asked before each round of examples, by all processes together, whether to give up. None is then
        given back.
        """
        self.model.eval()
        try:
            sums = self._held_out_sums(source, wants_stop)
        finally:
            self.model.train()
        if sums is None:
            return None
        if self.args.world_size > 1:
            sums = together(sums)
        return sums[0] / sums[1]

    def _held_out_sums(self, source: Source, wants_stop: Callable[[], bool]) -> list[float] | None:
        """Of this process's share: losses, and supervised tokens."""
        sums = [0.0, 0.0]
        with paddle.no_grad(), self.autocast_smart_context_manager():
            for first in range(0, len(source), self.arrangement.replicas):
                if wants_stop():
                    return None
                index = first + self.arrangement.replica
                if index >= len(source) and self.shared_out is None:
                    break
                # Where matrices are fetched, all processes have to run the model as many times.
                batch = collate([source[min(index, len(source) - 1)]], self.loader.config, 1.0)
                loss = float(self.model(batch))
                if index < len(source):
                    sums[0] += loss
                    sums[1] += len(batch.targets)
        return sums

    def save(self) -> None:
        """Write a checkpoint of the last update now. Called by all processes together."""
        self._save_checkpoint(self.model)

    def _save_checkpoint(self, model: nn.Layer, metrics: Any = None) -> None:  # noqa: ARG002
        step = self.state.global_step
        if self.args.process_index:  # rank 0 asks the others for their part
            self.give_weights()
            save_optimizer(self.run, self.adamw, self.learning(), self._holders())
        else:
            write_checkpoint(self.run, step, self._write_checkpoint)
            self.rotate()
        if self.args.world_size > 1:
            paddle.distributed.barrier()  # nobody goes on before the checkpoint is there

    def rotate(self) -> None:
        """Remove checkpoints that are no longer to be kept, by the one process that writes them."""
        if not self.args.process_index:
            best = None if self.best_step is None else self.run / f"checkpoint-{self.best_step}"
            rotate(self.run, self.keep, best)

    def _write_checkpoint(self, folder: Path) -> None:
        self.save_weights(folder)
        save_optimizer(folder / _OPTIMIZER, self.adamw, self.learning(), self._holders())
        (folder / _SCHEDULER).write_text(json.dumps(self.lr_scheduler.state_dict()), encoding="utf-8")
        self.state.save_to_json(str(folder / STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint is not None:
            self.load_weights(Path(resume_from_checkpoint))
            if self.shared_out is not None:
                self.shared_out.refresh()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        load_optimizer(folder / _OPTIMIZER, self.adamw, self.learning(), self._holders())
        self.lr_scheduler.set_state_dict(json.loads((folder / _SCHEDULER).read_text(encoding="utf-8")))
        self.loader.start_step = int(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])


def make_arguments(
    options: TrainingOptions, output: Path, steps: int, plan: Plan, placement: Placement, parts: int = 1
) -> TrainingArguments:
    """The Trainer's own settings: its loop and precision are used, its logging, saving and data order are not."""
    if placement.device == "cpu" and plan.ranks * parts > 1:
        separate_stores()
    warmup = options.warmup_steps if options.warmup_steps >= 1 else options.warmup_steps * steps
    with contextlib.redirect_stdout(io.StringIO()):
        return TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=options.micro_batch_size,
            gradient_accumulation_steps=plan.accumulation,
            max_steps=steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.schedule if options.schedule != "constant" else "constant_with_warmup",
            warmup_steps=round(warmup),
            weight_decay=options.weight_decay,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_epsilon=options.adam_epsilon,
            max_grad_norm=options.max_grad_norm,
            bf16=placement.dtype == "bfloat16",
            fp16_opt_level="O2",
            amp_master_grad=placement.dtype != "float32",
            sharding="stage1" if options.sharding != "none" and not own_stage(options) and plan.ranks > 1 else "",
            tensor_parallel_degree=parts if parts > 1 else -1,
            device=placement.device.partition(":")[0],
            seed=options.seed,
            do_train=True,
            ignore_data_skip=True,  # the loader begins at the right update
            logging_strategy="no",
            save_strategy="no",
            evaluation_strategy="no",
            disable_tqdm=True,
            report_to=[],
            skip_profile_timer=True,
            skip_memory_metrics=True,
        )
