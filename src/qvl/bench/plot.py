"""A record as a picture, with matplotlib, which is in an extra of its own."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from qvl.bench.records import Measure, Record
from qvl.errors import UsageError

_STAGES: tuple[Measure, ...] = ("load", "preprocess", "vision", "prefill")


def draw(record: Record, out: Path) -> None:
    """Write the picture. Raises UsageError when the file cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = _ops(pyplot, record) if record.kind == "ops" else _model(pyplot, record)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise UsageError(f"--plot {out}: cannot be written ({error.strerror or error})") from None
    finally:
        pyplot.close(figure)


def _model(pyplot: Any, record: Record) -> Any:
    """Left, what the first token waits for; right, decoding over the length of the context."""
    names = [side.name for side in record.sides]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    begun = [0.0] * len(names)
    for stage in _STAGES:
        found = {row.side: row.median or 0.0 for row in record.rows if row.measure == stage}
        widths = [found.get(name, 0.0) for name in names]
        left.barh(names, widths, left=begun, label=stage)
        begun = [start + width for start, width in zip(begun, widths, strict=True)]
    rest = [_rest(record, name) for name in names]
    if any(rest):
        left.barh(names, rest, left=begun, label="vision and prefill", color="grey")
    left.invert_yaxis()
    left.set(xlabel="seconds", title="load and time to first token")
    left.legend()
    for name in names:
        for batch in sorted({row.batch for row in record.rows if row.batch is not None}):
            rows = [row for row in record.rows if (row.side, row.measure, row.batch) == (name, "decode", batch)]
            points = sorted((row.context, row) for row in rows if row.samples and row.context is not None)
            if not points:
                continue
            medians = [statistics.median(row.samples) for _, row in points]
            below = [middle - min(row.samples) for middle, (_, row) in zip(medians, points, strict=True)]
            above = [max(row.samples) - middle for middle, (_, row) in zip(medians, points, strict=True)]
            places = [context for context, _ in points]
            right.errorbar(
                places, medians, yerr=[below, above], marker="o", capsize=3, label=f"{name}, {batch} at a time"
            )
    right.set(xlabel="tokens in the cache", ylabel="tokens/s", title="decode", ylim=(0, None))
    if right.has_data():
        right.legend()
    right.grid(alpha=0.3)
    figure.suptitle(f"{record.settings['profile']}, {record.machine.cpu}, {record.threads} threads")
    return figure


def _rest(record: Record, name: str) -> float:
    """Seconds to the first token that a side does not tell apart."""
    medians = {row.measure: row.median for row in record.rows if row.side == name and row.median is not None}
    if "vision" in medians:
        return 0.0
    return max(0.0, medians.get("first_token", 0.0) - medians.get("preprocess", 0.0))


def _ops(pyplot: Any, record: Record) -> Any:
    """How many times faster each native body is."""
    rows = [row for row in record.ops if row.speedup is not None]
    names = [f"{row.op} {row.variant} {row.rows}x {row.sizes}".replace("  ", " ") for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.22 * len(rows)), layout="constrained")
    axes.barh(range(len(rows)), [row.speedup for row in rows])
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    if rows:
        axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="times faster than the composed body", title=f"{record.machine.cpu}, {record.threads} threads")
    return figure
