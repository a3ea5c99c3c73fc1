"""A fine-tuning run from a profile and a data set to a trained model or adapter."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.errors import CheckpointError, UsageError  # noqa: E402
from qvl.model.qwen2_vl import Qwen2VL  # noqa: E402
from qvl.model.save import save_model  # noqa: E402
from qvl.model.weights import fill_model, load_model  # noqa: E402
from qvl.training.checkpoints import check_writable, last_checkpoint  # noqa: E402
from qvl.training.examples import ExampleSource  # noqa: E402
from qvl.training.loader import Loader, Subset  # noqa: E402
from qvl.training.model import TrainingModel, choose_trained  # noqa: E402
from qvl.training.record import EvaluationFile, MetricsFile, ScalarLog, StepRecord  # noqa: E402
from qvl.training.run import (  # noqa: E402
    DESCRIPTION,
    Observer,
    Run,
    description,
    estimate_run,
    write_description,
)
from qvl.training.stopping import StoppedError, signals  # noqa: E402


def train(run: Run, observer: Observer) -> Path:
    """Train, and return the folder of the result: OUTPUT/adapter or OUTPUT/model.

    Stops after the update under way, with a checkpoint, on SIGINT and SIGTERM: then StoppedError is raised.
    """
    output, options = run.request.output, run.options
    checkpoint = _resume_from(run)
    need, learning, total = estimate_run(run)
    observer.estimated(need, learning, total)
    check_writable(output, (options.save_total_limit + 1) * _checkpoint_bytes(run, learning, total))
    model = load_model(
        run.folder,
        run.config,
        dtype=run.placement.dtype,
        attention=run.placement.attention,
        layout=None if run.profile.weight_layout == "auto" else run.profile.weight_layout,
        allow_pickle=run.profile.allow_pickle,
    )
    weights = _weights(run, model)
    cache_bytes = options.cache_mb * 2**20
    source = ExampleSource(run.dataset, run.processor, run.prepared, cache_bytes=cache_bytes)
    loader = Loader(
        run.plan,
        Subset(source, run.trained),
        run.config,
        rank=paddle.distributed.get_rank(),
        steps=run.steps,
        workers=options.workers,
    )
    write_description(run)
    with signals() as asked:
        trainer = _trainer(run, model, loader, weights, Subset(source, run.held_out), observer, asked)
        start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        observer.started(run.steps, start)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped = trainer.stopped
    if stopped:  # maybe by a signal that another process got
        raise StoppedError(asked[0] if asked else signal.SIGTERM)
    return _finish(run, weights)


@dataclass(frozen=True)
class Weights:
    """How what a run learns is written to a folder and read back."""

    name: str
    save: Callable[[Path], None]
    load: Callable[[Path], None]


def _weights(run: Run, model: Qwen2VL) -> Weights:
    """Choose what learns, and say how to keep it."""
    dtype = run.placement.dtype
    if run.options.method == "full":
        choose_trained(model, run.options.train)
        save = partial(save_model, model, source=run.folder, dtype=dtype)
        return Weights("model", save, lambda folder: fill_model(model, folder, dtype))
    from qvl.training.adapters import add_lora, load_adapter_into, save_adapter

    lora = run.options.lora
    paddle.seed(run.options.seed)
    wrapped = add_lora(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        rslora=lora.rslora,
        targets=lora.targets,
        parts=lora.parts,
    )
    base = str(Path(run.profile.model).resolve()) if Path(run.profile.model).is_dir() else run.profile.model

    def save_lora(folder: Path) -> None:
        save_adapter(wrapped, folder, base)

    return Weights("adapter", save_lora, lambda folder: load_adapter_into(wrapped, folder))


def _trainer(
    run: Run,
    model: Qwen2VL,
    loader: Loader,
    weights: Weights,
    held_out: Subset,
    observer: Observer,
    asked: list[int],
) -> Any:
    from qvl.training.trainer import Evaluation, Recorder, SftTrainer, make_arguments

    options, output = run.options, run.request.output
    checkpoint = last_checkpoint(output) if run.request.resume else None
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    first = paddle.distributed.get_rank() == 0
    metrics = MetricsFile(output, start) if first else None
    scalars = ScalarLog(output) if first else None
    evaluations = EvaluationFile(output, start, writes=first) if len(held_out) else None

    def on_step(record: StepRecord) -> None:
        if metrics is not None and scalars is not None:
            metrics.write(record)
            scalars.write(record)
            observer.step(record)

    def on_loss(step: int, loss: float) -> bool:
        if evaluations is None:
            return False
        best = evaluations.write(step, loss)
        if first:
            observer.evaluated(step, loss, best)
        return best

    recorder = Recorder(
        on_step,
        seed=options.seed,
        save_steps=options.save_steps,
        wants_stop=lambda: bool(asked),
        evaluation=Evaluation(held_out, options.eval_steps, on_loss) if len(held_out) else None,
    )
    trainer = SftTrainer(
        TrainingModel(model, loss_chunk=options.loss_chunk, recompute=options.recompute),
        make_arguments(options, output, run.steps, run.plan, run.placement),
        loader,
        save_weights=lambda folder: weights.save(folder / weights.name),
        load_weights=lambda folder: weights.load(folder / weights.name),
        save_total_limit=options.save_total_limit,
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    if evaluations is not None and evaluations.best_step:
        trainer.best_step = evaluations.best_step
    return trainer


def _resume_from(run: Run) -> Path | None:
    """The checkpoint to go on from, after a check that it is of the same run."""
    output = run.request.output
    checkpoint = last_checkpoint(output)
    if not run.request.resume:
        if checkpoint is not None:
            raise CheckpointError(f"{output}: holds a run already ({checkpoint.name}); add --resume or choose another")
        return None
    described = output / DESCRIPTION
    if checkpoint is None or not described.is_file():
        return None
    before = json.loads(described.read_text(encoding="utf-8"))
    now = description(run)
    for key in ("data_fingerprint", "training", "steps", "devices"):
        if before.get(key) != now[key]:
            raise UsageError(f"{output}: {key} is not what it was when this run began, so it cannot be resumed")
    return checkpoint


def _checkpoint_bytes(run: Run, learning: int, total: int) -> int:
    size = 4 if run.placement.dtype == "float32" else 2
    weights = total * size if run.options.method == "full" else learning * 4
    return weights + learning * (8 if size == 4 else 12)


def _finish(run: Run, weights: Weights) -> Path:
    """Put the result in its own folder beside the checkpoints."""
    result = run.request.output / weights.name
    if paddle.distributed.get_rank() == 0:
        shutil.rmtree(result, ignore_errors=True)
        weights.save(result)
    if run.plan.ranks > 1:
        paddle.distributed.barrier()  # a process that loses its neighbour is aborted, whatever it is at
    return result
