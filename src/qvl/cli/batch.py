"""`qvl infer --batch` and `--each`: from the options to a run over many records, and what is said of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.cli import infer, render
from qvl.cli.batch_digest import run_digests
from qvl.cli.batch_each import each_record
from qvl.cli.batch_input import Records, StreamRecords, read_lines
from qvl.cli.batch_options import BatchOptions
from qvl.cli.batch_output import OutputFile, StdoutSink
from qvl.cli.batch_record import Defaults
from qvl.cli.batch_resume import Earlier, Found, Pool, scan
from qvl.cli.batch_run import Job, Run
from qvl.cli.media import STDIN, StandardInput, check_limits, limits_given, question_text
from qvl.cli.options import MediaOptions, ModelOptions, OutputOptions, QuestionOptions, SamplingOptions
from qvl.cli.paths import local
from qvl.errors import QvlError, UsageError
from qvl.messages import Image
from qvl.messages_json import interleave

if TYPE_CHECKING:
    from qvl.runtime.engine import Engine

_BATCH_SIZE = 8


class BatchError(QvlError):
    """The run is over, and some of its records failed."""


@dataclass(frozen=True)
class Options:
    """All that was given."""

    batch: BatchOptions
    media: MediaOptions
    question: QuestionOptions
    model: ModelOptions
    sampling: SamplingOptions
    output: OutputOptions


def run_batch(options: Options) -> None:
    """Answer every record.

    Raises UsageError for what is wrong with the run itself, before anything is loaded; BatchError at its end when
    records failed.
    """
    _check(options)
    batch, quiet = options.batch, options.output.quiet
    with render.manners(render.AnswerWriter(silent=True)):
        defaults = _defaults(options)
        records = _records(options)
        path = None if batch.output in (None, STDIN) else _path(batch.output or "")
        _check_apart(records, path)
        profile, remark = infer.chosen_profile(options.model, options.media)
        engine = infer.open_engine(profile, options.model)
        job = _job(options, engine, records, Defaults(defaults.media, defaults.prompt, defaults.system, records.root))

        def load() -> None:
            infer.load_weights(engine, options.model, quiet)
            if remark is not None:
                render.note(remark, quiet)

        if path is None:
            run = Run(job, StdoutSink())
            _go(run, load)
            _conclude(run, quiet)
        else:
            _into_file(job, path, batch, load)


def _check(options: Options) -> None:
    batch, question = options.batch, options.question
    rivals = {"--messages": question.messages is not None, "--boxes": options.output.boxes is not None}
    if batch.batch is not None:
        rivals |= {"MEDIA": bool(options.media.media), "--video": bool(options.media.video)}
    given = [name for name, is_given in rivals.items() if is_given]
    if given:
        raise UsageError(f"{'--each' if batch.each else '--batch'} does not go with {', '.join(given)}")
    if batch.output in (None, STDIN) and (batch.retry or batch.restart):
        raise UsageError(f"{'--retry' if batch.retry else '--restart'} is about an output file; name it with -o")
    if batch.retry and batch.restart:
        raise UsageError("--retry and --restart exclude each other")
    check_limits(options.media)


def _defaults(options: Options) -> Defaults:
    """The question and the system turn of records without their own; --each has no other."""
    question, stdin = options.question, StandardInput()
    if question.prompt == STDIN and options.batch.batch == STDIN:
        raise UsageError("standard input cannot be both the question and the batch")
    asked = options.batch.each or question.prompt is not None
    prompt = question_text(question, stdin) if asked else None
    if options.batch.each:
        interleave(prompt or "", [Image("")])  # raises for more places than the one medium
    return Defaults(options.media, prompt, question.system)


def _records(options: Options) -> Records:
    if options.batch.each:
        return each_record(options.media, options.output.quiet)
    name = options.batch.batch or ""
    if name != STDIN:
        return read_lines(_path(name), name)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("the batch was to come from standard input, but nothing is piped in")
    return StreamRecords(sys.stdin.buffer, "standard input")


def _path(name: str) -> Path:
    return local(name)


def _check_apart(records: Records, output: Path | None) -> None:
    source = _path(records.name)
    with contextlib.suppress(OSError, ValueError):
        if output is not None and source.is_file() and output.samefile(source):
            raise UsageError(f"--output {output}: is the batch itself")


def _job(options: Options, engine: Engine, records: Records, defaults: Defaults) -> Job:
    overrides = options.sampling.overrides()
    flags = {
        "limits": limits_given(options.media),
        "prompt": defaults.prompt,
        "system": defaults.system,
        "stats": options.output.stats,
    }
    return Job(
        engine,
        records,
        defaults,
        # Raises for flags that are wrong for every record.
        runs=run_digests(engine, engine.sampling(**overrides), flags),
        sampling=overrides,
        batch_size=options.batch.batch_size or _BATCH_SIZE,
        check_memory=not options.model.no_memory_check,
        strict=options.batch.strict,
        ordered=not options.batch.unordered,
        stats=options.output.stats,
        quiet=options.output.quiet,
        debug=options.output.debug or os.environ.get("QVL_DEBUG", "0") not in ("", "0"),
    )


def _into_file(job: Job, path: Path, batch: BatchOptions, load: Callable[[], None]) -> None:
    """Go on with the file, or begin it."""
    with contextlib.closing(OutputFile(path)) as file:
        pool = Pool(path)
        found = Found()
        if batch.restart:
            file.begin_anew(pool.drop)
        else:
            found = scan(path)
            file.cut(found.end)
            if found.cut:
                render.note(f"{path}: its last line was cut off; that record runs again", job.quiet)
        if batch.retry:
            pool.take(file, found)
            found = Found()
        if not batch.restart:
            pool.open()
        earlier = Earlier(path, found, job.runs, job.ordered)
        if job.records.tickets is not None:
            earlier.check(job.records.tickets)
        if job.strict and earlier.failed:
            raise UsageError(f"{path}: holds records that failed, and --strict allows none; --retry runs them again")
        if len(earlier):
            render.note(f"{path}: going on; {len(earlier)}{_total(job)} records are there", job.quiet)
        run = Run(job, file, earlier, pool)
        try:
            _go(run, load)
        except KeyboardInterrupt:
            render.note(_state(run, file, pool, batch), job.quiet)
            raise
        finally:
            file.sync()
        if batch.restart and not run.count.written:
            raise UsageError(f"{job.records.name}: no records, so {path} is left as it was")
        pool.drop()
    _conclude(run, job.quiet)


def _go(run: Run, load: Callable[[], None]) -> None:
    def load_and_show() -> None:
        load()
        stack.enter_context(_bar(run))

    with contextlib.ExitStack() as stack:
        run.go(load_and_show)


def _state(run: Run, file: OutputFile, pool: Pool, batch: BatchOptions) -> str:
    """What an interrupted run leaves behind, and how to go on."""
    count = run.count
    if count.written > count.before:
        return f"{count.written}{_total(run.job)} records are in {file.path}; {file.remedy} from there"
    if batch.restart:  # going on with what is there is not what was asked for
        return f"nothing was written yet, {file.path} is as it was"
    kept = f"what was there is in {pool.path}" if batch.retry else f"{file.path} is as it was"
    return f"nothing was written yet, {kept}; {file.remedy} from there"


def _total(job: Job) -> str:
    return "" if job.records.tickets is None else f" of {len(job.records.tickets)}"


def _conclude(run: Run, quiet: bool) -> None:
    """The closing line. Raises BatchError, which is that line, when any record failed."""
    count, name = run.count, run.sink.name
    records = f"{count.written} record{'' if count.written == 1 else 's'}"
    if count.failed:
        again = "; --retry runs them again" if run.earlier is not None else ""
        raise BatchError(f"{count.failed} of {records} failed, their lines in {name} say why{again}")
    render.note(f"{records} answered, in {name}", quiet)


def _bar(run: Run) -> contextlib.AbstractContextManager[None]:
    """Progress on stderr while nothing else is written to the same terminal."""
    if not render.is_live(run.job.quiet) or (isinstance(run.sink, StdoutSink) and sys.stdout.isatty()):
        return contextlib.nullcontext()
    from qvl.cli.batch_bar import progress

    return progress(run)
