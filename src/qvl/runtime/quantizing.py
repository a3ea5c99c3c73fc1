"""Quantising a checkpoint once and for all, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvl import environment

environment.prepare()

from qvl.errors import UsageError  # noqa: E402
from qvl.model.checkpoint import Layout  # noqa: E402
from qvl.model.foreign import foreign_of  # noqa: E402
from qvl.model.packed_store import Progress, quantise_folder  # noqa: E402
from qvl.model.quantization import (  # noqa: E402
    DEFAULT_GROUP,
    DEFAULT_SYMMETRIC,
    WIDTHS,
    Quantization,
    Width,
    foreign_quantization,
)
from qvl.ops import native  # noqa: E402
from qvl.ops.packing import GROUPS  # noqa: E402


@dataclass(frozen=True)
class Wish:
    """How to quantise. group, symmetric: of int4; None is what suits it best. width: None is int4, and what AWQ or GPTQ
    has quantised as it is.
    """

    width: str | None = None
    group: int | None = None
    symmetric: bool | None = None
    layout: Layout | None = None
    force: bool = False


@dataclass(frozen=True)
class Written:
    """What a folder was written with: the bytes of its weights, and what they are called."""

    nbytes: int
    width: str


def quantize(source: Path, out: Path, wish: Wish, on_progress: Progress | None = None) -> Written:
    """Write a quantised copy of a checkpoint folder.

    Raises UsageError for the wish, CheckpointError for the folders.
    """
    asked = wish.width or "int4"
    width = next((width for width in WIDTHS if width == asked), None)
    if width is None:
        raise UsageError(f"--quant {asked}: one of {', '.join(WIDTHS)} was expected")
    foreign = foreign_of(source)
    if foreign is not None:
        if wish.group is not None or wish.symmetric is not None:
            raise UsageError(f"--group and --symmetric: what {foreign.label} has quantised keeps its groups")
        chosen = foreign_quantization(foreign, wish.width or "auto", str(source))
    else:
        chosen = _of_original(width, wish)
    size = quantise_folder(source, out, chosen, layout=wish.layout, force=wish.force, on_progress=on_progress)
    return Written(size, chosen.width)


def _of_original(width: Width, wish: Wish) -> Quantization:
    if width != "int4" and (wish.group is not None or wish.symmetric is not None):
        raise UsageError(f"--group and --symmetric are for int4; {width} has one scale an output or none")
    group = DEFAULT_GROUP if wish.group is None else wish.group
    if group not in GROUPS:
        raise UsageError(f"--group {group}: one of {', '.join(map(str, GROUPS))} was expected")
    symmetric = DEFAULT_SYMMETRIC if wish.symmetric is None else wish.symmetric
    return Quantization.of(width, group, symmetric)


def why_slow() -> str | None:
    """Why quantising takes minutes in place of seconds, or None where it does not."""
    return native.why_not()
