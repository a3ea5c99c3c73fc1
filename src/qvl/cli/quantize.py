"""`qvl quantize`: a checkpoint's weights in fewer bits, stored so that the next start only maps them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.ending import cleaning_up
from qvl.cli.layout import Layout, layout_of, naming_layout
from qvl.cli.options import flattened, option
from qvl.cli.paths import local
from qvl.errors import UsageError
from qvl.hub.locate import locate
from qvl.profile import list_profiles, load_profile


@dataclass(frozen=True)
class QuantizeOptions:
    """What is quantised, and how."""

    panel: ClassVar[str] = "Quantising"

    model: Annotated[
        str,
        typer.Argument(
            help="A profile or its file, a hub id or a checkpoint folder.", metavar="MODEL", show_default=False
        ),
    ] = ""
    out: Annotated[str | None, option("--output", "-o", metavar="DIR", help="The folder to write.")] = None
    quant: Annotated[
        str | None,
        option(
            "--quant",
            metavar="int4|int8|bf16",
            help="What the weights become; int4 without it, and as they are what AWQ or GPTQ has quantised.",
        ),
    ] = None
    group: Annotated[
        int | None, option("--group", metavar="32|64|128", help="Inputs that share a scale in int4; 64 without it.")
    ] = None
    symmetric: Annotated[
        bool, option("--symmetric", help="int4 without zero points: smaller by a fortieth, and less exact.")
    ] = False
    layout: Annotated[
        str | None,
        option("--layout", metavar="hf|paddle", help="Of the matrices, where the files do not say it."),
    ] = None
    force: Annotated[bool, option("--force", help="Replace a folder that this command wrote before.")] = False
    threads: Annotated[
        int | None,
        option("--threads", min=1, help="CPU threads; else QVL_THREADS, OMP_NUM_THREADS, or one a core."),
    ] = None
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress and no remarks.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def quantize(options: QuantizeOptions) -> None:
    """Write a checkpoint with its weights in bfloat16, int8 or int4, and print the folder's name."""
    if not options.model:
        raise UsageError("which model? qvl quantize MODEL -o DIR")
    if options.out is None:
        raise UsageError("--output DIR is missing: the folder to write")
    if options.quiet:
        warnings.simplefilter("ignore")
    with render.manners(render.AnswerWriter(silent=True)), cleaning_up():
        layout = layout_of(options.layout)
        model, own = _model_of(options.model)
        source, out = locate(model), local(options.out)
        _quantize(options, source, out, layout or own)
        print(out, flush=True)


def _model_of(name: str) -> tuple[str, Layout | None]:
    """A profile, by its name or its file, stands for its model and says how the matrices lie; any other name is one."""
    known = {info.name for info in list_profiles() if info.usable}
    if name not in known and (not name.endswith((".yaml", ".yml")) or local(name).is_dir()):
        return name, None
    profile = load_profile(name)
    return profile.model, None if profile.weight_layout == "auto" else profile.weight_layout


def _quantize(options: QuantizeOptions, source: Path, out: Path, layout: Layout | None) -> None:
    from qvl.environment import set_threads

    if options.threads is not None:
        set_threads(options.threads)
    from qvl.runtime.quantizing import Wish, quantize, why_slow

    reason = why_slow()
    if reason is not None:
        render.note(f"this takes long without native ops: {reason}", options.quiet)
    wish = Wish(
        options.quant,
        options.group,
        True if options.symmetric else None,
        layout,
        options.force,
    )
    with render.progress(f"quantising {source.name}", options.quiet) as on_progress, naming_layout():
        written = quantize(source, out, wish, on_progress)
    render.note(
        f"{written.width} weights of {written.nbytes / render.GIB:.2f} GiB; qvl infer --model {out} runs them",
        options.quiet,
    )
