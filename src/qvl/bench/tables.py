"""A record for people: tables of medians and spreads, with rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qvl.bench.records import Measure, OpRow, Record, Row, spread

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_GIB = 1024**3
_WORDS: dict[Measure, str] = {
    "start": "start, imports",
    "load": "load",
    "preprocess": "read picture and text",
    "vision": "vision tower",
    "prefill": "prefill",
    "first_token": "first token",
    "start_to_first_token": "start to first token",
    "answer": "answer",
    "decode": "decode",
    "peak_memory": "peak memory",
    "peak_memory_all": "peak memory, whole run",
    "gpu_peak_memory": "peak memory of the GPU",
}
_ABSENT = "-"


def render(record: Record) -> Iterator[RenderableType]:
    """What is printed, in order."""
    yield from _heading(record)
    if record.kind == "ops":
        yield _ops(record)
    else:
        yield _model(record)
    yield from _footing(record)


def _heading(record: Record) -> Iterator[str]:
    machine, settings = record.machine, record.settings
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    threads = f"{record.threads} thread{'s' if record.threads != 1 else ''}"
    yield f"{machine.cpu}, {cores}, {threads}; {machine.system}; {record.date}"
    yield ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if record.kind == "ops":
        peaks = record.peaks or {}
        rates = [f"{name} {peaks[name] / 1e9:.0f}" for name in ("float32", "bfloat16", "int8") if peaks.get(name)]
        yield (
            f"memory: {peaks['read'] / 1e9:.1f} GB/s read, {peaks['copy'] / 1e9:.1f} copied; "
            f"arithmetic, Gop/s: {', '.join(rates)}; CPU features: {settings['level'] or _ABSENT}"
        )
        return
    question = settings["question"]
    picture = "x".join(map(str, question["picture"])) if question["picture"] else "no"
    weights = ["random weights"] if settings["random_weights"] else []
    where = f"{settings['dtype']} on {settings['device']}, quantize {settings['quantize']}"
    ops = record.sides[0].details.get("ops", {})
    level = f" ({ops['level']})" if "level" in ops else ""
    bodies = [f"{ops['body']} ops{level}"] if ops else []
    yield ", ".join([f"{settings['profile']}: {settings['model']}", *weights, where, *bodies])
    yield (
        f"{picture} picture, {question['prompt_tokens']} tokens in all, {question['new_tokens']} out; "
        f"{settings['repeats']} repeats, warm-ups: {settings['warmup']}"
    )
    for side in record.sides[1:]:
        versions = ", ".join(f"{name} {version}" for name, version in side.versions.items())
        yield f"against {versions}, {_turns(record)}"


def _turns(record: Record) -> str:
    if record.turns == "kept":
        return "taking turns, both in memory"
    return "taking turns, each started anew for its turns"


def _table(words: int, *columns: str) -> Table:
    """words: how many columns are not numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number >= words else "left", no_wrap=True)
    return table


def _model(record: Record) -> Table:
    names = [side.name for side in record.sides]
    columns = [column for name in names for column in (name, "least to most")]
    ratio = len(names) == 2
    table = _table(1, "", *columns, *(["ratio"] if ratio else []))
    for label, rows in _lines(record.rows):
        cells = [cell for name in names for cell in _cells(rows.get(name))]
        table.add_row(label, *cells, *([_ratio([rows.get(name) for name in names])] if ratio else []))
    return table


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Row]]]:
    """Rows of all sides by what they measure, in the order of the words."""
    grouped: dict[tuple[Measure, int | None, int | None], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault((row.measure, row.batch, row.context), {})[row.side] = row
    for measure, words in _WORDS.items():
        for (kind, batch, context), sides in grouped.items():
            if kind == measure:
                yield (words if context is None else f"{words} behind {context}, {batch} at a time"), sides


def _cells(row: Row | None) -> tuple[str, str]:
    if row is None or row.median is None:
        return _ABSENT, ""
    unit, size, digits = _scale(row.unit, row.median)
    middle, low, high = (f"{value / size:.{digits}f}" for value in (row.median, min(row.samples), max(row.samples)))
    return f"{middle} {unit}", f"{low} to {high}"


def _scale(unit: str, median: float) -> tuple[str, float, int]:
    """The unit a row is shown in, what it is of the row's own, and decimals."""
    if unit == "bytes":
        return "GiB", _GIB, 2
    return ("ms", 1e-3, 1) if unit == "s" and median < 1 else (unit, 1, 2)


def _ratio(rows: Sequence[Row | None]) -> str:
    """qvl's median as a multiple of the peer's."""
    medians = [row.median if row is not None else None for row in rows]
    ours, theirs = medians
    return f"{ours / theirs:.2f}" if ours is not None and theirs else _ABSENT


def _ops(record: Record) -> Table:
    table = _table(3, "op", "", "size", "rows", "native", "least to most", "composed", "faster", "memory", "arithmetic")
    for row in record.ops:
        native = spread(row.native)
        spans = f"{_time(native['least'])} to {_time(native['most'])}" if row.native else ""
        cells = (
            *(row.variant, row.sizes, str(row.rows), _time(native["median"]), spans),
            *(_time(spread(row.composed)["median"]), _times(row), _share(row.bandwidth_share)),
        )
        table.add_row(row.op, *cells, _share(row.arithmetic_share))
    return table


def _times(row: OpRow) -> str:
    return _ABSENT if row.speedup is None else f"{row.speedup:.1f}x"


def _share(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.0f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _ABSENT
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def _footing(record: Record) -> Iterator[str]:
    absent = {(row.side, row.note) for row in record.rows if not row.samples and row.note}
    yield from (f"{_ABSENT} of {side}: {note}" for side, note in sorted(absent))
    found = record.comparison
    if found is not None:
        equal = f"{found.equal_tokens} of {found.compared_tokens} tokens are equal"
        yield f"answers: {equal}, {found.leading_tokens} before the first that is not"
