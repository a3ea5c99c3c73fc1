"""The run of `qvl bench`: which side does what, in which turn, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from qvl import machine
from qvl.bench.records import Measure, Row, Turns, Unit, Watcher
from qvl.bench.side import SideProcess, Spec

# What has to stay free beside two sides that are kept in memory together, as a share of the machine's: to run out of
# memory ends more than a benchmark, and others take some too.
_SPARE = 0.1
_STAGES: tuple[Measure, ...] = ("preprocess", "vision", "prefill", "first_token")


@dataclass(frozen=True)
class Asked:
    """What every side is asked. path: of the picture, None without one. contexts, batches: of decoding."""

    path: str | None
    text: str
    new_tokens: int
    contexts: Sequence[int]
    batches: Sequence[int]
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Outcome:
    """What came of a run. answers: the last one of each side, None where it does not tell its tokens."""

    rows: Sequence[Row]
    turns: Turns
    hellos: Sequence[dict[str, Any]]
    prompt_tokens: Sequence[int]
    answers: Sequence[Sequence[int] | None]


class _Samples:
    """The figures of one side as they come, in the order their rows are shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: dict[tuple[Measure, Unit, int | None, int | None], list[float]] = {}
        self._notes: dict[tuple[Measure, Unit, int | None, int | None], str] = {}

    def add(
        self,
        measure: Measure,
        unit: Unit,
        value: float | None,
        *,
        context: int | None = None,
        batch: int | None = None,
        note: str = "",
    ) -> None:
        key = (measure, unit, context, batch)
        samples = self._found.setdefault(key, [])
        if value is not None:
            samples.append(value)
        elif note:
            self._notes[key] = note

    def rows(self) -> Iterator[Row]:
        for key, samples in self._found.items():
            measure, unit, context, batch = key
            yield Row(self.name, measure, unit, tuple(samples), context, batch, self._notes.get(key, ""))


class _Timed:
    """A side through a run: its process when it has one, and its samples."""

    def __init__(self, spec: Spec, asked: Asked, stack: ExitStack) -> None:
        self.asked = asked
        self.process = stack.enter_context(SideProcess(spec))
        self.samples = _Samples(spec.name)
        self.peak = self.prompt_tokens = 0
        self.answer: list[int] | None = None

    def life(self, *, keep: bool, counted: bool = True) -> None:
        """A whole life: start, load, and the first question with nothing warm. keep: do not end it."""
        process, samples = self.process, self.samples
        process.start()
        loaded = process.ask("load", **process.spec.load)["seconds"]
        first = self._ask()
        if counted:
            samples.add("start", "s", process.start_seconds)
            samples.add("load", "s", loaded)
            samples.add("start_to_first_token", "s", process.start_seconds + loaded + first["first_token"])
            peaks = process.ask("memory")
            samples.add("peak_memory", "bytes", peaks["process"])
            if peaks["gpu"] is not None:
                samples.add("gpu_peak_memory", "bytes", peaks["gpu"])
            self.peak = max(self.peak, peaks["process"])
        if not keep:
            process.stop()

    def turn(self, *, counted: bool) -> None:
        """The question, then decoding at every context and batch size."""
        figures = self._ask()
        if counted:
            for stage in _STAGES:
                self.samples.add(stage, "s", figures[stage], note="not told apart")
            self.samples.add("answer", "tokens/s", figures["tokens_per_second"])
        for batch in self.asked.batches:
            for context in self.asked.contexts:
                speed, why = self._decode(context, batch)
                if counted:
                    self.samples.add("decode", "tokens/s", speed, context=context, batch=batch, note=why)

    def end(self) -> None:
        """The peak with everything that was run."""
        if self.process.running:
            self.samples.add("peak_memory_all", "bytes", self.process.ask("memory")["process"])
            self.process.stop()

    def _ask(self) -> dict[str, Any]:
        asked = self.asked
        figures = self.process.ask("question", path=asked.path, text=asked.text, new_tokens=asked.new_tokens)
        self.prompt_tokens, self.answer = figures["prompt_tokens"], figures["token_ids"]
        return figures

    def _decode(self, context: int, batch: int) -> tuple[float | None, str]:
        hello = self.process.hello
        if not hello.get("contexts"):
            return None, "it answers whole questions only"
        if batch > 1 and not hello.get("batches"):
            return None, "it answers one at a time"
        found = self.process.ask("decode", context=context, batch=batch, new_tokens=self.asked.new_tokens)
        if "skipped" in found:
            return None, str(found["skipped"])
        return found["tokens"] / found["seconds"], ""


def run(specs: Sequence[Spec], asked: Asked, watcher: Watcher) -> Outcome:
    """Time the sides, taking turns.

    First each lives `repeats` whole lives in turn, for starting, loading and memory. Then, if all fit into memory at
    once, they stay and take turns being asked; else each is started anew for each of its turns. Raises QvlError.
    """
    with ExitStack() as stack:
        sides = [_Timed(spec, asked, stack) for spec in specs]
        alone = len(sides) == 1
        for number in range(asked.repeats):
            for side in sides:
                watcher.say(f"loading {side.samples.name}, {number + 1} of {asked.repeats}")
                side.life(keep=alone and number + 1 == asked.repeats)
        turns: Turns = "kept"
        if not alone:
            turns = _turns(sides)
            watcher.note(_announced(turns, sides))
        if turns == "kept" and not alone:
            for side in sides:
                watcher.say(f"starting {side.samples.name}")
                side.life(keep=True, counted=False)
        for number in range(-asked.warmup, asked.repeats):
            for side in sides:
                what = "warming up" if number < 0 else f"turn {number + 1} of {asked.repeats}:"
                watcher.say(f"{what} {side.samples.name}")
                _turn(side, turns, counted=number >= 0)
        for side in sides:
            side.end()
        return Outcome(
            rows=[row for side in sides for row in side.samples.rows()],
            turns=turns,
            hellos=[side.process.hello for side in sides],
            prompt_tokens=[side.prompt_tokens for side in sides],
            answers=[side.answer for side in sides],
        )


def _turn(side: _Timed, turns: Turns, *, counted: bool) -> None:
    if turns == "kept":
        side.turn(counted=counted)
    elif counted:  # a side that is started anew warms up in its own life, with the question that begins it
        side.life(keep=True, counted=False)
        side.turn(counted=True)
        side.end()


def _turns(sides: Sequence[_Timed]) -> Turns:
    """Whether all sides, as large as they were seen to be, fit into memory at once."""
    spare = int(_SPARE * machine.memory_size())
    return "kept" if sum(side.peak for side in sides) + spare <= machine.free_memory() else "restarted"


def _announced(turns: Turns, sides: Sequence[_Timed]) -> str:
    both = sum(side.peak for side in sides) / 1024**3
    if turns == "kept":
        return f"both sides stay in memory ({both:.1f} GiB together) and take turns"
    free = machine.free_memory() / 1024**3
    return f"both sides take {both:.1f} GiB, {free:.1f} GiB are free: each is started anew for each of its turns"
