"""What `qvl bench` finds out, as frozen records: rows of figures, and the record of a whole run around them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1  # raised when keys of the JSON form change their meaning

Measure = Literal[
    "start",
    "load",
    "preprocess",
    "vision",
    "prefill",
    "first_token",
    "start_to_first_token",
    "answer",
    "decode",
    "peak_memory",
    "peak_memory_all",
    "gpu_peak_memory",
]
Unit = Literal["s", "tokens/s", "bytes"]
Turns = Literal["kept", "restarted"]


@dataclass(frozen=True)
class Row:
    """One figure of one side.

    samples: in the order they were taken; empty where there are none, and `note` then says why. context, batch: tokens
    in each cache and answers taken together, of "decode" rows; None elsewhere.
    """

    side: str
    measure: Measure
    unit: Unit
    samples: tuple[float, ...]
    context: int | None = None
    batch: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "samples": list(self.samples), **spread(self.samples)}


@dataclass(frozen=True)
class OpRow:
    """One op at one size: seconds of a call of each body, and what part of the machine the native one reaches.

    variant: of its weights or cache. rows: of its input. bytes, operations: least that a call has to move and to do.
    bandwidth_share, arithmetic_share: of the measured peaks; None without a native body, and where there is nothing to
    count. composed, native: seconds, in the order they were taken.
    """

    op: str
    variant: str
    rows: int
    sizes: str
    native: tuple[float, ...]
    composed: tuple[float, ...]
    bytes: int
    operations: int
    arithmetic: str
    bandwidth_share: float | None
    arithmetic_share: float | None

    @property
    def speedup(self) -> float | None:
        """How many times faster the native body is, by the medians."""
        return statistics.median(self.composed) / statistics.median(self.native) if self.native else None

    def to_json(self) -> dict[str, Any]:
        bodies = {
            name: {"samples": list(samples), **spread(samples)}
            for name, samples in (("native", self.native), ("composed", self.composed))
        }
        return {**asdict(self), **bodies, "speedup": self.speedup}


@dataclass(frozen=True)
class Side:
    """Who was timed. versions: by distribution. details: what else it says of itself, such as the ops it runs."""

    name: str
    versions: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The answers of two sides: tokens in the same place that are equal, of so many, and those before the first
    that is not. None where the peer does not tell its tokens."""

    equal_tokens: int
    compared_tokens: int
    leading_tokens: int


@dataclass(frozen=True)
class Machine:
    """cores: physical ones. allowed: hardware threads this process may run on. memory: bytes.

    load_average: of the last minute when the run began; None where the system has none.
    """

    cpu: str
    architecture: str
    cores: int
    hardware_threads: int
    allowed: int
    quota: float | None
    extensions: tuple[str, ...]
    memory: int
    system: str
    load_average: float | None


@dataclass(frozen=True)
class Record:
    """A whole run. kind: "model" or "ops". date: ISO 8601. settings: what was asked for. remarks: a line each."""

    kind: Literal["model", "ops"]
    date: str
    machine: Machine
    threads: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    sides: Sequence[Side] = ()
    turns: Turns | None = None
    rows: Sequence[Row] = ()
    comparison: Comparison | None = None
    peaks: Mapping[str, Any] | None = None
    ops: Sequence[OpRow] = ()
    remarks: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """What --json writes; docs/bench.md describes the keys."""
        common = {
            "format": FORMAT,
            "kind": self.kind,
            "date": self.date,
            "machine": asdict(self.machine),
            "threads": self.threads,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "spread": "least and most of the samples",
            "remarks": list(self.remarks),
        }
        if self.kind == "ops":
            return {**common, "peaks": dict(self.peaks or {}), "ops": [row.to_json() for row in self.ops]}
        return {
            **common,
            "turns": self.turns,
            "sides": [asdict(side) for side in self.sides],
            "rows": [row.to_json() for row in self.rows],
            "comparison": asdict(self.comparison) if self.comparison else None,
        }


@dataclass(frozen=True)
class Watcher:
    """Who is told of a run while it goes. say: what is being done. note: what the user should know of how it is done.
    remark: what spoils the figures, which is in the record too."""

    say: Callable[[str], None]
    note: Callable[[str], None]
    remark: Callable[[str], None]


def spread(samples: Sequence[float]) -> dict[str, float | None]:
    """Median, least and most; None of nothing."""
    if not samples:
        return {"median": None, "least": None, "most": None}
    return {"median": statistics.median(samples), "least": min(samples), "most": max(samples)}


def compare(ours: Sequence[int] | None, theirs: Sequence[int] | None) -> Comparison | None:
    """Two answers token by token; None where one of them is not known."""
    if ours is None or theirs is None:
        return None
    same = [one == other for one, other in zip(ours, theirs, strict=False)]
    leading = same.index(False) if False in same else len(same)
    return Comparison(sum(same), max(len(ours), len(theirs)), leading)
