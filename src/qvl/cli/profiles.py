"""`qvl profiles`: which profiles there are, and what one of them says in full."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from qvl.cli import render
from qvl.profile import ProfileInfo, list_profiles, load_profile

_HEADINGS = ("NAME", "FOR", "GIB BF16", "GIB FP32", "DESCRIPTION", "SOURCE")


def profiles(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="Print this one in full, as YAML.", show_default=False)
    ] = None,
) -> None:
    """List the profiles, or print one with every key that --set takes."""
    with render.manners(render.AnswerWriter(silent=False)):
        if name is not None:
            import yaml

            profile = dataclasses.asdict(load_profile(name))
            profile["generation"]["stop"] = list(profile["generation"]["stop"])
            print(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True), end="", flush=True)
            return
        rows = [_HEADINGS, *(_row(info) for info in list_profiles())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _row(info: ProfileInfo) -> tuple[str, ...]:
    need = info.memory_gib
    sizes = [f"{size:g}" if size is not None else "-" for size in (need.bfloat16, need.float32)]
    return (info.name, info.command or "-", *sizes, info.description, info.source)
