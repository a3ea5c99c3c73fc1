"""`qvl merge-lora`: an adapter and its base become a checkpoint of their own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.ending import cleaning_up
from qvl.cli.layout import layout_of, naming_layout
from qvl.cli.options import flattened, option
from qvl.cli.paths import local
from qvl.errors import CheckpointError, UsageError
from qvl.hub.locate import find, locate


@dataclass(frozen=True)
class MergeOptions:
    """What is merged, and where to."""

    panel: ClassVar[str] = "Merging"

    adapter: Annotated[
        str, typer.Argument(help="The adapter's folder, in the layout of PEFT.", metavar="ADAPTER", show_default=False)
    ] = ""
    out: Annotated[
        str | None, option("--output", "-o", metavar="DIR", help="The folder to write; ADAPTER-merged by default.")
    ] = None
    base: Annotated[
        str | None, option("--base", metavar="NAME|DIR", help="The base, in place of what the adapter names.")
    ] = None
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="float32|bfloat16|float16", help="Of the merged weights; the base's by default."),
    ] = None
    layout: Annotated[
        str | None,
        option("--layout", metavar="hf|paddle", help="Of the base's matrices, where its files do not say it."),
    ] = None
    no_check: Annotated[
        bool,
        option("--no-check", help="Do not compare answers, which loads base and result, in float32."),
    ] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress and no remarks.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def merge_lora(merge: MergeOptions) -> None:
    """Merge a LoRA adapter into its base and write a complete checkpoint folder, whose name is printed."""
    if not merge.adapter:
        raise UsageError("which adapter? qvl merge-lora ADAPTER, its folder")
    if merge.quiet:
        warnings.simplefilter("ignore")
    with render.manners(render.AnswerWriter(silent=True)), cleaning_up():
        adapter = local(merge.adapter).resolve()
        out = local(merge.out) if merge.out else adapter.with_name(f"{adapter.name}-merged")
        base = locate(merge.base) if merge.base is not None else _base_of(adapter)
        _merge(merge, base, adapter, out)
        print(out, flush=True)


def _base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter names. Raises QvlError, with what to do about it where there is that."""
    from qvl.hub.adapters import base_name

    hint = "--base NAME|DIR gives the base"
    try:
        name = base_name(f"adapter={adapter}")
    except UsageError as error:  # it names none
        raise UsageError(f"{error}; {hint}") from None
    if find(name) is None:
        named = f"{name}, which the adapter in {adapter} names as its base"
        raise CheckpointError(f"{named}, is not on this machine; {hint}")
    return locate(name)


def _merge(options: MergeOptions, base: Path, adapter: Path, out: Path) -> None:
    from qvl.runtime.merging import merge

    with render.progress(f"merging {adapter.name}", options.quiet) as on_progress, naming_layout():
        result = merge(
            base,
            adapter,
            out,
            dtype=options.dtype,
            layout=layout_of(options.layout),
            compared=not options.no_check,
            on_progress=on_progress,
        )
    if result is None:
        render.note("merged logits were not compared with the adapter's", options.quiet)
        return
    render.note(
        f"merged logits differ from the adapter's by {result.difference:.1e} of their range, by {result.error:.1e} "
        f"beside the rounding of weights; the adapter moves them by {result.moved:.1e}",
        options.quiet,
    )
    if result.is_hidden:
        render.note("rounding hides most of what the adapter does; --dtype float32 would keep it", options.quiet)
