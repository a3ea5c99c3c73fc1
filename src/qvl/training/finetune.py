"""A fine-tuning run from a profile and a data set to a trained model or adapter."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.errors import CheckpointError, UsageError  # noqa: E402
from qvl.hub.names import full_name  # noqa: E402
from qvl.model.qwen2_vl import Qwen2VL  # noqa: E402
from qvl.model.save import save_model  # noqa: E402
from qvl.model.weights import empty_model, fill_model  # noqa: E402
from qvl.training.arithmetic import products  # noqa: E402
from qvl.training.checkpoints import check_writable, clear_partials, last_checkpoint, write_result  # noqa: E402
from qvl.training.examples import ExampleSource  # noqa: E402
from qvl.training.holders import Holders  # noqa: E402
from qvl.training.judging import Answerer, Judge  # noqa: E402
from qvl.training.loader import Loader, Subset  # noqa: E402
from qvl.training.model import TrainingModel, choose_trained  # noqa: E402
from qvl.training.parts import part_group  # noqa: E402
from qvl.training.record import EvaluationFile, MetricsFile, ScalarLog, StepRecord  # noqa: E402
from qvl.training.run import (  # noqa: E402
    DESCRIPTION,
    Observer,
    Run,
    changed,
    estimate_run,
    write_description,
)
from qvl.training.shards import Sharding, own_stage, share_out, whole_shapes  # noqa: E402
from qvl.training.stopping import StoppedError, signals  # noqa: E402


def train(run: Run, observer: Observer, answer: Answerer | None = None) -> Path:
    """Train, and return the folder of the result: OUTPUT/adapter or OUTPUT/model.

    answer: what gives the answers that `eval_answers` asks for.
    Stops after the update under way, with a checkpoint, on SIGINT and SIGTERM: then StoppedError is raised.
    """
    output, options = run.request.output, run.options
    checkpoint = _resume_from(run)
    need, learning, total = estimate_run(run)
    observer.estimated(need, learning, total)
    check_writable(output, (options.save_total_limit + 1) * _checkpoint_bytes(run, learning, total))
    arguments = _arguments(run)  # which group the processes
    model, sharding = _load(run)
    weights = _weights(run, model)
    if sharding is not None:
        sharding.install()
        sharding.refresh()
    cache_bytes = options.cache_mb * 2**20
    source = ExampleSource(run.dataset, run.processor, run.prepared, cache_bytes=cache_bytes)
    loader = Loader(
        run.plan,
        Subset(source, run.trained),
        run.config,
        rank=run.arrangement.replica,
        steps=run.steps,
        workers=options.workers,
    )
    if paddle.distributed.get_rank() == 0:
        clear_partials(output)
    write_description(run)
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    reporter = Reporter(run, start, observer, Judge(run, model, answer))
    # Importing PaddleNLP puts handlers of signals back to the system's, so it comes before ours are set.
    import qvl.training.trainer  # noqa: F401

    with products(options, run.placement), signals() as asked, _room_on_disk(output):
        recorder = _recorder(run, Subset(source, run.held_out), reporter, lambda: bool(asked))
        trainer = _trainer(run, arguments, model, loader, weights, recorder, sharding)
        trainer.best_step = reporter.best_step
        observer.started(run.steps, start)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped = trainer.stopped
        reporter.close()
    if stopped:  # maybe by a signal that another process got
        raise StoppedError(asked[0] if asked else signal.SIGTERM)
    return _finish(run, weights)


def _load(run: Run) -> tuple[Qwen2VL, Sharding | None]:
    """The model, a part of it, or stretches of its matrices, as much as this process has."""
    arranged, placement = run.arrangement, run.placement
    part = arranged.part(part_group()) if arranged.parts > 1 else None
    model = empty_model(run.config, placement.dtype, placement.attention, part)
    stage = own_stage(run.options) if arranged.processes > 1 else 0
    sharding = share_out(model, stage, arranged.process, arranged.processes) if stage else None
    layout = None if run.profile.weight_layout == "auto" else run.profile.weight_layout
    fill_model(model, run.folder, placement.dtype, layout=layout, allow_pickle=run.profile.allow_pickle)
    return model, sharding


@contextmanager
def _room_on_disk(output: Path) -> Iterator[None]:
    """Say in a line what a disk that fills up means for the run, whichever file it was that had no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(f"{error.filename or output}: cannot be written ({error.strerror})") from None


@dataclass(frozen=True)
class Weights:
    """How what a run learns is written to a folder and read back.

    give: what the processes that do not save call meanwhile.
    """

    name: str
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    give: Callable[[], None]


def _weights(run: Run, model: Qwen2VL) -> Weights:
    """Choose what learns, and say how to keep it."""
    dtype = run.placement.dtype
    holders = Holders(run.arrangement.process, part=model.held, config=run.config)

    def whole(name: str, held: paddle.Tensor) -> paddle.Tensor:
        brought = holders.bring(name, held, held)
        assert brought is not None
        return brought

    if run.options.method == "full":
        choose_trained(model, run.options.train)
        save = partial(save_model, model, source=run.folder, dtype=dtype, whole=whole)
        return Weights(
            "model",
            save,
            lambda folder: fill_model(model, folder, dtype),
            lambda: holders.give(model.named_parameters()),
        )
    from qvl.training.adapters import add_lora, factors_of, load_adapter_into, save_adapter

    lora = run.options.lora
    paddle.seed(run.options.seed)
    with whole_shapes(model):
        wrapped = add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            rslora=lora.rslora,
            targets=lora.targets,
            parts=lora.parts,
        )
    base = str(Path(run.profile.model).resolve()) if Path(run.profile.model).is_dir() else full_name(run.profile.model)

    def save_lora(folder: Path) -> None:
        save_adapter(wrapped, folder, base, whole)

    def load_lora(folder: Path) -> None:
        with whole_shapes(model):  # by which the file is checked
            load_adapter_into(wrapped, folder)

    return Weights(
        "adapter",
        save_lora,
        load_lora,
        lambda: holders.give(factors_of(wrapped)),
    )


class Reporter:
    """What a run says of itself, to its files and to its observer: the first process for all of them."""

    def __init__(self, run: Run, start: int, observer: Observer, judge: Judge) -> None:
        output, self._first = run.request.output, paddle.distributed.get_rank() == 0
        self._observer, self._judge = observer, judge
        self._metrics = MetricsFile(output, start) if self._first else None
        self._scalars = ScalarLog(output) if self._first else None
        self._evaluations = EvaluationFile(output, start, writes=self._first) if len(run.held_out) else None

    @property
    def best_step(self) -> int | None:
        """Where the held-out loss was least, of those before this sitting too."""
        return (self._evaluations.best_step or None) if self._evaluations else None

    def step(self, record: StepRecord) -> None:
        if self._metrics is not None and self._scalars is not None:
            self._metrics.write(record)
            self._scalars.write(record)
            self._observer.step(record)

    def evaluated(self, step: int, loss: float) -> bool:
        """Whether this held-out loss, which all processes have, is the best so far."""
        assert self._evaluations is not None
        answers = self._judge.answers() if self._first else ()
        best = self._evaluations.write(step, loss, [asdict(answer) for answer in answers])
        if self._first:
            self._observer.evaluated(step, loss, best)
            self._observer.answered(answers)
        return best

    def close(self) -> None:
        if self._scalars is not None:
            self._scalars.close()


def _recorder(run: Run, held_out: Subset, reporter: Reporter, wants_stop: Callable[[], bool]) -> Any:
    from qvl.training.trainer import Evaluation, Recorder

    return Recorder(
        reporter.step,
        seed=run.options.seed,
        save_steps=run.options.save_steps,
        wants_stop=wants_stop,
        evaluation=Evaluation(held_out, run.options.eval_steps, reporter.evaluated) if len(held_out) else None,
    )


def _arguments(run: Run) -> Any:
    from qvl.training.trainer import make_arguments

    return make_arguments(run.options, run.request.output, run.steps, run.plan, run.placement, run.arrangement.parts)


def _trainer(
    run: Run,
    arguments: Any,
    model: Qwen2VL,
    loader: Loader,
    weights: Weights,
    recorder: Any,
    sharding: Sharding | None,
) -> Any:
    from qvl.training.trainer import SftTrainer

    options = run.options
    trainer = SftTrainer(
        TrainingModel(
            model,
            loss_chunk=options.loss_chunk,
            recompute=options.recompute,
            ends=sharding.ends if sharding else nullcontext,
        ),
        arguments,
        loader,
        save_weights=lambda folder: weights.save(folder / weights.name),
        load_weights=lambda folder: weights.load(folder / weights.name),
        give_weights=weights.give,
        arrangement=run.arrangement,
        sharding=sharding,
        save_total_limit=options.save_total_limit,
        callbacks=[recorder],
    )
    recorder.trainer = trainer
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
    key = changed(before, run)
    if key is not None:
        raise UsageError(f"{output}: {key} is not what it was when this run began, so it cannot be resumed")
    return checkpoint


def _checkpoint_bytes(run: Run, learning: int, total: int) -> int:
    size = 4 if run.placement.dtype == "float32" else 2
    weights = total * size if run.options.method == "full" else learning * 4
    return weights + learning * (8 if size == 4 else 12)


def _finish(run: Run, weights: Weights) -> Path:
    """Put the result in its own folder beside the checkpoints."""
    if paddle.distributed.get_rank() == 0:
        write_result(run.request.output, weights.name, weights.save)
    else:
        weights.give()
    if run.arrangement.processes > 1:
        paddle.distributed.barrier()  # a process that loses its neighbour is aborted, whatever it is at
    return run.request.output / weights.name
