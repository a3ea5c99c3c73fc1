"""A fine-tuning run from a profile and a data set to a trained model or adapter."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.errors import CheckpointError, UsageError  # noqa: E402
from qvl.model.qwen2_vl import Qwen2VL  # noqa: E402
from qvl.model.weights import empty_model, fill_model  # noqa: E402
from qvl.training.alone import alone  # noqa: E402
from qvl.training.arithmetic import products  # noqa: E402
from qvl.training.checkpoints import (  # noqa: E402
    check_writable,
    clear_partials,
    last_checkpoint,
    list_checkpoints,
    write_result,
)
from qvl.training.decoders import decoders  # noqa: E402
from qvl.training.description import check_alike, difference, previous, write_description  # noqa: E402
from qvl.training.examples import ExampleSource  # noqa: E402
from qvl.training.judging import Answerer, Judge  # noqa: E402
from qvl.training.loader import Loader, Subset  # noqa: E402
from qvl.training.model import TrainingModel  # noqa: E402
from qvl.training.parts import part_group  # noqa: E402
from qvl.training.record import EvaluationFile, MetricsFile, ScalarLog, StepRecord  # noqa: E402
from qvl.training.run import Observer, Run, estimate_run  # noqa: E402
from qvl.training.shards import Sharding, own_stage, share_out  # noqa: E402
from qvl.training.stopping import StoppedError, signals  # noqa: E402
from qvl.training.sums import together  # noqa: E402
from qvl.training.weights import Weights, choose_weights  # noqa: E402

# Micro-batches that a run has to go for processes that decode: each takes half a second to start, and some 100 MB.
_WORTH_PROCESSES = 100


def train(run: Run, observer: Observer, answer: Answerer | None = None) -> Path:
    """Train, and return the folder of the result: OUTPUT/adapter or OUTPUT/model.

    answer: what gives the answers that `eval_answers` asks for.
    Stops after the update under way, with a checkpoint, on SIGINT and SIGTERM: then StoppedError is raised. UsageError
    when another run has the output folder, which is this one's alone until it ends.
    """
    first = paddle.distributed.get_rank() == 0  # which is the one that writes
    with alone(run.request.output) if first else nullcontext():
        return _train(run, observer, answer)


def _train(run: Run, observer: Observer, answer: Answerer | None) -> Path:
    output, options = run.request.output, run.options
    checkpoint = _resume_from(run)
    need, learning, total = estimate_run(run)
    observer.estimated(need, learning, total)
    if paddle.distributed.get_rank() == 0:
        clear_partials(output)
        check_writable(output, room_needed(run, learning, total))
    arguments = _arguments(run)  # which group the processes
    if run.arrangement.processes > 1:
        check_alike(run)
    model, sharding = _load(run)
    weights = choose_weights(run, model)
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
    write_description(run)
    start = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    reporter = Reporter(run, start, observer, Judge(run, model, answer))
    # Importing PaddleNLP puts handlers of signals back to the system's, so it comes before ours are set.
    import qvl.training.trainer  # noqa: F401

    left = (run.steps - start) * run.plan.accumulation
    with ExitStack() as stack:
        stack.enter_context(products(options, run.placement))
        asked = stack.enter_context(signals())
        stack.enter_context(_room_on_disk(output))
        if options.workers and left >= _WORTH_PROCESSES:
            source.decode = stack.enter_context(decoders(source.read, options.workers))
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


class Reporter:
    """What a run says of itself, to its files and to its observer: the first process for all of them."""

    def __init__(self, run: Run, start: int, observer: Observer, judge: Judge) -> None:
        output, self._first = run.request.output, paddle.distributed.get_rank() == 0
        self._observer, self._judge, self._processes = observer, judge, run.arrangement.processes
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

    @property
    def judged(self) -> frozenset[int]:
        """The steps that were judged before this sitting."""
        return self._evaluations.judged if self._evaluations else frozenset()

    def evaluated(self, step: int, loss: float, wants_stop: Callable[[], bool]) -> bool | None:
        """Whether this held-out loss, which all processes have, is the best so far.

        None, in all of them, when a wish to stop broke the answers off: nothing is then recorded.
        """
        assert self._evaluations is not None
        answers = self._judge.answers(wants_stop) if self._first else ()
        broken_off = answers is None
        if self._processes > 1:
            broken_off = together([float(broken_off)])[0] > 0
        if answers is None or broken_off:
            return None
        best = self._evaluations.write(step, loss, [asdict(answer) for answer in answers])
        if self._first:
            self._observer.evaluated(step, loss, best)
            self._observer.answered(answers)
        return best

    def close(self) -> None:
        if self._scalars is not None:
            self._scalars.close()


def _recorder(run: Run, held_out: Subset, reporter: Reporter, wants_stop: Callable[[], bool]) -> Any:
    from qvl.training.recorder import Evaluation, Recorder

    evaluation = Evaluation(
        held_out,
        run.options.eval_steps,
        lambda step, loss: reporter.evaluated(step, loss, wants_stop),
        reporter.judged,
    )
    return Recorder(
        reporter.step,
        seed=run.options.seed,
        save_steps=run.options.save_steps,
        wants_stop=wants_stop,
        evaluation=evaluation if len(held_out) else None,
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
    before = previous(output)
    if before is None:
        return None
    found = difference(before, run)
    if found is not None:
        raise UsageError(f"{output}: cannot be resumed: {found}; go on as it began, or choose another --output")
    return checkpoint


def room_needed(run: Run, learning: int, total: int) -> int:
    """Bytes of disk that a run has yet to take: the checkpoints that it has take theirs already.

    One more is written before an old one goes, and the result comes beside them.
    """
    size = 4 if run.placement.dtype == "float32" else 2
    result = total * size if run.options.method == "full" else learning * 4
    checkpoint = result + learning * (8 if size == 4 else 12)
    missing = run.options.save_total_limit + 1 - len(list_checkpoints(run.request.output))
    return max(missing * checkpoint, checkpoint + result)


def _finish(run: Run, weights: Weights) -> Path:
    """Put the result in its own folder beside the checkpoints."""
    if paddle.distributed.get_rank() == 0:
        write_result(run.request.output, weights.name, weights.save)
    else:
        weights.give()
    if run.arrangement.processes > 1:
        paddle.distributed.barrier()  # a process that loses its neighbour is aborted, whatever it is at
    return run.request.output / weights.name
