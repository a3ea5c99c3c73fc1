"""A record for machines: JSON, and CSV with a line for each row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from qvl.bench.records import OpRow, Record, Row, spread

# The order of columns; a reader goes by names.
MODEL_COLUMNS = ("side", "measure", "context", "batch", "unit", "median", "least", "most", "samples", "note")
OP_COLUMNS = (
    *("op", "variant", "rows", "sizes", "native_median", "native_least", "native_most"),
    *("composed_median", "composed_least", "composed_most", "speedup"),
    *("bytes", "operations", "arithmetic", "bandwidth_share", "arithmetic_share"),
)


def as_json(record: Record) -> str:
    """One object on one line."""
    return json.dumps(record.to_json()) + "\n"


def as_csv(record: Record) -> str:
    """Cells are empty where there is no figure; `samples` are joined by semicolons."""
    text = io.StringIO()
    columns: Sequence[str] = OP_COLUMNS if record.kind == "ops" else MODEL_COLUMNS
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_op, record.ops) if record.kind == "ops" else map(_row, record.rows))
    return text.getvalue()


def _row(row: Row) -> dict[str, Any]:
    data = row.to_json()
    return {**data, "samples": ";".join(map(str, row.samples))}


def _op(row: OpRow) -> dict[str, Any]:
    data = row.to_json()
    bodies = {
        f"{body}_{name}": value
        for body, samples in (("native", row.native), ("composed", row.composed))
        for name, value in spread(samples).items()
    }
    return {name: {**data, **bodies}[name] for name in OP_COLUMNS}
