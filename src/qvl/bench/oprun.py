"""`qvl bench ops`: every native op in turn with its composed body, as a record. Imports Paddle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.bench import here, peaks  # noqa: E402
from qvl.bench.opcases import CASES  # noqa: E402
from qvl.bench.opcases.case import OpCase, Sizes  # noqa: E402
from qvl.bench.records import OpRow, Record, Watcher  # noqa: E402
from qvl.errors import UsageError, suggest  # noqa: E402
from qvl.machine import free_memory  # noqa: E402
from qvl.model.config import ModelConfig  # noqa: E402
from qvl.model.shapes import FULL_2B, FULL_7B, TINY  # noqa: E402
from qvl.ops import native, status  # noqa: E402

Shape = Literal["2b", "7b", "tiny"]
SHAPES: dict[Shape, ModelConfig] = {"2b": FULL_2B, "7b": FULL_7B, "tiny": TINY}

# A sample is as many calls as take this long together, so that the clock's own steps do not show.
_SAMPLE_SECONDS = 0.01
# What one body of one case may take in all; a slow one has fewer samples.
_BODY_SECONDS = 3.0
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MIB = 1 << 20


@dataclass(frozen=True)
class OpsRequest:
    """shape: whose sizes. only: names of ops, or parts of them; none: all. repeats: samples of each body."""

    shape: Shape = "2b"
    only: Sequence[str] = ()
    repeats: int = 7


def measure(request: OpsRequest, watcher: Watcher) -> Record:
    """Time the ops on this CPU. Raises UsageError for a name that no op has, and as `native.library` does."""
    names = chosen(request.only)
    date, machine = here.now(), here.this_machine()
    remarks = [text for text in (here.busy(machine),) if text]
    status.check()
    paddle.set_device("cpu")
    if (reason := native.why_not()) is not None:
        remarks.append(f"only the composed bodies are timed: {reason}")
    for text in remarks:
        watcher.remark(text)
    sizes, timed = _sizes(request.shape), []
    before = _peaks(request.shape, watcher)
    with paddle.no_grad():
        for name in names:
            watcher.say(f"timing {name}")
            timed += [_time(case, request.repeats) for case in CASES[name](sizes)]
    after = _peaks(request.shape, watcher)
    limits = peaks.best(before, after)
    if not peaks.steady(before, after):
        remarks.append(
            "memory or arithmetic were much faster at one end of the run than at the other; shares are rough"
        )
        watcher.remark(remarks[-1])
    return Record(
        kind="ops",
        date=date,
        machine=machine,
        threads=environment.threads(),
        versions=here.versions(),
        settings={
            "shape": request.shape,
            "only": list(request.only),
            "repeats": request.repeats,
            "level": _level(),
            "tokens": sizes.tokens,
            "patches": sizes.patches,
            "context": sizes.context,
            "cold_bytes": sizes.cold_bytes,
        },
        peaks=limits.to_json(),
        ops=[_row(one, limits) for one in timed],
        remarks=remarks,
    )


def shape_named(name: str) -> Shape:
    """Raises UsageError for another one."""
    for known in SHAPES:
        if name == known:
            return known
    raise UsageError(f"--shape is {name}; expected {', '.join(SHAPES)}{suggest(name, SHAPES)}")


def chosen(only: Sequence[str]) -> list[str]:
    """The ops whose names contain one of the words, in order; all without words. Raises UsageError."""
    for word in only:
        if not any(word in name for name in CASES):
            raise UsageError(f"--only {word}: no such op{suggest(word, CASES) or '; there are ' + ', '.join(CASES)}")
    return [name for name in CASES if not only or any(word in name for word in only)]


@dataclass(frozen=True, eq=False)
class _Timed:
    """A case without its calls, which hold its weights, and the samples of both bodies."""

    case: OpCase
    native: tuple[float, ...]
    composed: tuple[float, ...]


def _time(case: OpCase, repeats: int) -> _Timed:
    """Both bodies in turn, so that whatever disturbs the machine disturbs both."""
    composed = _Body("composed", case)
    ours = _Body("native", case) if native.why_not() is None else None
    for number in range(repeats):
        if ours is not None:
            ours.sample(number)
        composed.sample(number)
    return _Timed(replace(case, calls=()), tuple(ours.samples) if ours is not None else (), tuple(composed.samples))


def _row(timed: _Timed, limits: peaks.Peaks) -> OpRow:
    case, operations = timed.case, timed.case.operations
    seconds = statistics.median(timed.native) if timed.native else None
    return OpRow(
        op=case.op,
        variant=case.variant,
        rows=case.rows,
        sizes=case.sizes,
        native=timed.native,
        composed=timed.composed,
        bytes=case.bytes,
        operations=operations,
        arithmetic=case.arithmetic,
        bandwidth_share=case.bytes / seconds / limits.bandwidth if seconds is not None else None,
        arithmetic_share=operations / seconds / limits.arithmetic(case.arithmetic) if seconds and operations else None,
    )


def _peaks(shape: Shape, watcher: Watcher) -> peaks.Peaks:
    watcher.say("measuring what memory and arithmetic can do here")
    return peaks.measure(environment.threads(), _span(shape), 256 if shape == "tiny" else 2048)


class _Body:
    """One body of one case: its calls, and the samples taken so far."""

    def __init__(self, mode: Literal["native", "composed"], case: OpCase) -> None:
        self.mode: Literal["native", "composed"] = mode
        self.samples: list[float] = []
        self._calls = cycle(case.calls)
        self._spent = 0.0
        with native.using(self.mode):
            next(self._calls)()  # warm: code, threads, and what is made on the first call
            once = _seconds(next(self._calls))
        self._count = max(1, min(1000, int(_SAMPLE_SECONDS / once)))

    def sample(self, number: int) -> None:
        """Seconds of a call, of as many as make a sample. From the second on only while there is time."""
        if number and self._spent > _BODY_SECONDS:
            return
        with native.using(self.mode):
            taken = sum(_seconds(next(self._calls)) for _ in range(self._count))
        self.samples.append(taken / self._count)
        self._spent += taken


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _level() -> str | None:
    """The level of CPU features that the native ops use, where they are timed."""
    return str(native.installed()[0].level()) if native.why_not() is None else None


def _sizes(shape: Shape) -> Sizes:
    if shape == "tiny":
        return Sizes(TINY, tokens=9, patches=16, context=33, cold_bytes=0)
    return Sizes(SHAPES[shape], tokens=281, patches=1024, context=1024, cold_bytes=_span(shape))


def _span(shape: Shape) -> int:
    """Memory that no cache of this CPU holds: twice its largest one, as far as there is memory for it."""
    if shape == "tiny":
        return 16 * _MIB
    return min(1024 * _MIB, max(128 * _MIB, 2 * _largest_cache()), max(128 * _MIB, free_memory() // 8))


def _largest_cache() -> int:
    """Bytes; 0 where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for path in _CACHES.glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) * units.get(text[-1], 1))
        except (OSError, ValueError):
            continue
    return max(sizes)
