"""`qvl merge-lora`: an adapter and its base become a checkpoint of their own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.options import flattened, option
from qvl.errors import QvlError, UsageError
from qvl.hub.locate import locate


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
    with render.manners(render.AnswerWriter(silent=True)):
        adapter = Path(merge.adapter).expanduser().resolve()
        out = Path(merge.out).expanduser() if merge.out else adapter.with_name(f"{adapter.name}-merged")
        base = locate(merge.base) if merge.base is not None else _base_of(adapter)
        _merge(merge, base, adapter, out)
        print(out, flush=True)


def _base_of(adapter: Path) -> Path:
    from qvl.hub.adapters import locate_base

    try:
        return locate_base(adapter)
    except QvlError as error:
        raise type(error)(f"{error}; --base NAME|DIR gives the base") from None


def _merge(options: MergeOptions, base: Path, adapter: Path, out: Path) -> None:
    from qvl.runtime.merging import merge

    with render.progress(f"merging {adapter.name}", options.quiet) as on_progress:
        result = merge(base, adapter, out, dtype=options.dtype, compared=not options.no_check, on_progress=on_progress)
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
