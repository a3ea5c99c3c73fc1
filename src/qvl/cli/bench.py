"""`qvl bench`: how fast a model or each op runs here, alone or beside a peer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.ending import cleaning_up
from qvl.cli.infer import chosen_profile
from qvl.cli.options import MediaOptions, ModelOptions, flattened, option
from qvl.cli.paths import check_file, check_plot, local
from qvl.cli.streams import OutputError
from qvl.errors import UsageError, suggest

if TYPE_CHECKING:
    from qvl.bench.model import Grid, Request
    from qvl.bench.question import Question
    from qvl.bench.records import Record, Watcher
    from qvl.profile import Profile

_OPS = "ops"
_RANDOM_PROFILE = "2b"
_WIDTH = 240  # more than any table takes: a narrow terminal wraps its lines, which loses nothing


@dataclass(frozen=True)
class WhatOptions:
    """What is timed."""

    panel: ClassVar[str] = "What is timed"

    what: Annotated[
        str | None,
        typer.Argument(
            metavar="ops", help="Time each native op beside its composed body, not a model.", show_default=False
        ),
    ] = None
    random_weights: Annotated[
        bool,
        option(
            "--random-weights", help="Random weights of the model's shape, made once and kept; nothing to download."
        ),
    ] = False
    picture: Annotated[
        str | None, option("--picture", metavar="WxH|none", help="Size of the picture asked about; 448x448.")
    ] = None
    text_tokens: Annotated[
        int | None,
        option("--text-tokens", min=1, help="Tokens of the prompt beside those of the picture's content; 25."),
    ] = None
    new_tokens: Annotated[int | None, option("--new-tokens", min=2, help="Tokens of each answer; 32.")] = None
    contexts: Annotated[
        str | None,
        option("--contexts", metavar="N,N...|none", help="Tokens in the cache when decoding is timed; 512,2048."),
    ] = None
    batch_sizes: Annotated[
        str | None, option("--batch-sizes", metavar="N,N...", help="Answers decoded at a time; 1,4.")
    ] = None
    repeats: Annotated[int | None, option("--repeats", min=1, help="Samples of each figure; 3, for ops 7.")] = None
    warmup: Annotated[int | None, option("--warmup", min=0, help="Turns before the first that counts; 1.")] = None


@dataclass(frozen=True)
class PeerOptions:
    """Whom to run beside qvl."""

    panel: ClassVar[str] = "Beside a peer"

    against: Annotated[
        str | None,
        option(
            "--against",
            metavar="transformers|llama.cpp|openvino",
            help="Run this too, on the same question in the same run, taking turns.",
        ),
    ] = None
    peer_python: Annotated[
        str | None, option("--peer-python", metavar="PATH", help="The Python that has the peer; else this one.")
    ] = None
    peer_model: Annotated[
        str | None,
        option(
            "--peer-model", metavar="PATH", help="The same model as the peer has it: a .gguf file, an OpenVINO folder."
        ),
    ] = None
    peer_mmproj: Annotated[
        str | None, option("--peer-mmproj", metavar="FILE", help="The vision tower for llama.cpp, a .gguf file.")
    ] = None


@dataclass(frozen=True)
class OpsOptions:
    """For `qvl bench ops`."""

    panel: ClassVar[str] = "Ops"

    shape: Annotated[
        str | None, option("--shape", metavar="2b|7b|tiny", help="The model whose sizes the ops are given; 2b.")
    ] = None
    only: Annotated[
        str | None, option("--only", metavar="NAME,NAME...", help="Ops whose name contains one of these.")
    ] = None


@dataclass(frozen=True)
class BenchOutput:
    """Where the figures go."""

    panel: ClassVar[str] = "Output"

    json: Annotated[
        str | None,
        option("--json", metavar="FILE|-", help="Write everything as one JSON object; - in place of the table."),
    ] = None
    csv: Annotated[
        str | None, option("--csv", metavar="FILE|-", help="Write a line for each row; - in place of the table.")
    ] = None
    plot: Annotated[str | None, option("--plot", metavar="OUT.png", help="Draw a chart.")] = None
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress and no warnings.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def bench(what: WhatOptions, model: ModelOptions, peer: PeerOptions, ops: OpsOptions, output: BenchOutput) -> None:
    """Time a model, or each native op, on this machine: medians of several samples, with least and most."""
    if output.quiet:
        warnings.simplefilter("ignore")
    with render.manners(render.AnswerWriter(silent=True)), cleaning_up():
        _check_output(output)
        if what.what not in (None, _OPS):
            raise UsageError(f"'{what.what}' cannot be timed; only 'ops' can be named{suggest(what.what, [_OPS])}")
        if what.what == _OPS:
            record = _time_ops(what, model, peer, ops, output.quiet)
        else:
            record = _time_model(what, model, peer, ops, output.quiet)
        _report(record, output)


def _time_model(what: WhatOptions, model: ModelOptions, peer: PeerOptions, ops: OpsOptions, quiet: bool) -> Record:
    if ops.shape is not None or ops.only is not None:
        raise UsageError("--shape and --only go with 'qvl bench ops'")
    profile = _profile(what, model, quiet)
    request = _request(profile, what, model, peer)
    with _watcher(quiet) as watcher:
        from qvl.bench.model import measure

        return measure(request, watcher)


def _profile(what: WhatOptions, model: ModelOptions, quiet: bool) -> Profile:
    if what.random_weights and model.profile is None and model.model is None:
        model = replace(model, profile=_RANDOM_PROFILE)
    profile, note = chosen_profile(model, MediaOptions())
    if note is not None and not what.random_weights:
        render.note("timing the demo model, which is tiny; --random-weights times the 2B's shape", quiet)
    return profile


def _request(profile: Profile, what: WhatOptions, model: ModelOptions, peer: PeerOptions) -> Request:
    from qvl.bench.against import checked
    from qvl.bench.model import Request

    question = _question(what)
    rival = None
    if peer.against is not None:
        has_picture = question.picture is not None
        rival = checked(peer.against, peer.peer_python, peer.peer_model, peer.peer_mmproj, picture=has_picture)
    elif (peer.peer_python, peer.peer_model, peer.peer_mmproj) != (None, None, None):
        raise UsageError("--peer-python, --peer-model and --peer-mmproj go with --against")
    return Request(
        profile=profile,
        question=question,
        grid=_grid(what),
        random=what.random_weights,
        adapters=model.adapter,
        threads=model.threads,
        check_memory=not model.no_memory_check,
        peer=rival,
    )


def _question(what: WhatOptions) -> Question:
    from qvl.bench.question import Question

    usual = Question()
    return Question(
        picture=usual.picture if what.picture is None else _size(what.picture),
        text_tokens=what.text_tokens or usual.text_tokens,
        new_tokens=what.new_tokens or usual.new_tokens,
    )


def _grid(what: WhatOptions) -> Grid:
    from qvl.bench.model import Grid

    contexts = () if what.contexts == "none" else _numbers("--contexts", what.contexts or "512,2048")
    batches = _numbers("--batch-sizes", what.batch_sizes or "1,4")
    return Grid(contexts, batches, what.repeats or 3, 1 if what.warmup is None else what.warmup)


def _size(text: str) -> tuple[int, int] | None:
    if text == "none":
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--picture is {text}; expected a size such as 448x448, or none")
    return int(width), int(height)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{name} is {text}; expected whole numbers of at least 1 with commas between")
    return tuple(dict.fromkeys(map(int, parts)))


def _time_ops(what: WhatOptions, model: ModelOptions, peer: PeerOptions, ops: OpsOptions, quiet: bool) -> Record:
    unused = (
        replace(what, what=None, repeats=None) != WhatOptions()
        or replace(model, threads=None) != ModelOptions()
        or peer != PeerOptions()
    )
    if unused:
        raise UsageError("'qvl bench ops' takes --shape, --only, --repeats, --threads and the options of output alone")
    if model.threads is not None:
        from qvl.environment import set_threads

        set_threads(model.threads)
    with _watcher(quiet) as watcher:
        from qvl.bench.oprun import OpsRequest, measure, shape_named

        names = tuple(filter(None, (part.strip() for part in (ops.only or "").split(","))))
        return measure(OpsRequest(shape_named(ops.shape or "2b"), names, what.repeats or 7), watcher)


@contextmanager
def _watcher(quiet: bool) -> Iterator[Watcher]:
    from qvl.bench.records import Watcher

    with render.changing_status(quiet) as say:
        yield Watcher(say, lambda text: render.note(text, quiet), lambda text: render.warn(text, quiet))


def _check_output(output: BenchOutput) -> None:
    """Before anything is timed: places that could not be written to."""
    if output.json == output.csv == "-":
        raise UsageError("--json - and --csv - cannot both go to standard output")
    places: list[Path] = []
    for name, target in (("--json", output.json), ("--csv", output.csv)):
        if target is not None and target != "-":
            places.append(local(target))
            check_file(name, places[-1])
    if output.plot is not None:
        places.append(local(output.plot))
        check_plot(places[-1])
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError("--json, --csv and --plot cannot be the same file")


def _report(record: Record, output: BenchOutput) -> None:
    from qvl.bench.export import as_csv, as_json

    if "-" not in (output.json, output.csv):  # first: whatever becomes of the files, the figures are there
        _show(record)
    for target, form in ((output.json, as_json), (output.csv, as_csv)):
        if target == "-":
            print(form(record), end="", flush=True)
        elif target is not None:
            _write(local(target), form(record))
    if output.plot is not None:
        from qvl.bench.plot import draw

        draw(record, local(output.plot))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _show(record: Record) -> None:
    from rich.console import Console

    from qvl.bench.tables import render as rendered

    console = Console(file=sys.stdout, highlight=False, markup=False, width=_WIDTH)
    for part in rendered(record):
        console.print(part, soft_wrap=isinstance(part, str))
    sys.stdout.flush()
