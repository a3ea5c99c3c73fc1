"""How long calls take: graphs of many of them, replayed in turns, so that a drift of the clock is everybody's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: the median, and what a tenth of the rounds were below and above."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int  # in each round
    note: str = ""  # why it was not in a graph, on a card


@dataclass(frozen=True)
class Failure:
    """Why there is no timing."""

    reason: str


class Clock(Protocol):
    def measure(self, sides: Mapping[str, Sequence[Run]], *, repeats: bool = True) -> dict[str, Timing | Failure]:
        """sides: calls that are made in turn; with `repeats` as often as a round needs to be long enough."""
        ...


def _timing(times: list[float], calls: int, note: str = "") -> Timing:
    """times: seconds of each round."""
    ordered = sorted(seconds / calls * 1e6 for seconds in times)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Timing(at(0.5), at(0.1), at(0.9), len(times), calls, note)


class HostClock:
    """Tries everything once and again: for the emulator, whose times mean nothing."""

    def measure(self, sides: Mapping[str, Sequence[Run]], *, repeats: bool = True) -> dict[str, Timing | Failure]:
        del repeats
        made: dict[str, Timing | Failure] = {}
        for name, runs in sides.items():
            try:
                times = []
                for _ in range(2):
                    begun = time.perf_counter()
                    for run in runs:
                        run()
                    times.append(time.perf_counter() - begun)
                made[name] = _timing(times, len(runs))
            except Exception as error:  # one side that cannot must not end the others
                made[name] = Failure(_said(error))
        return made


@dataclass
class _Plain:
    """In the place of a graph, for what none can be made of."""

    runs: Sequence[Run]

    def replay(self) -> None:
        for run in self.runs:
            run()


@dataclass
class _Round:
    graph: Any
    calls: int
    seconds: float  # about
    note: str = ""


class GraphClock:
    """On a card. A round is a replay of a graph of at least `shortest` seconds; all rounds of a case take `longest`."""

    def __init__(self, shortest: float = 2e-4, longest: float = 0.3, most_calls: int = 128) -> None:
        self.shortest, self.longest, self.most_calls = shortest, longest, most_calls
        self.stream = torch.cuda.Stream()

    def measure(self, sides: Mapping[str, Sequence[Run]], *, repeats: bool = True) -> dict[str, Timing | Failure]:
        each: dict[str, _Round] = {}
        made: dict[str, Timing | Failure] = {}
        torch.cuda.synchronize()  # operands were made on another stream
        with torch.cuda.stream(self.stream):
            for name, runs in sides.items():
                try:
                    each[name] = self._round(runs, repeats)
                except Exception as error:  # as above
                    made[name] = Failure(_said(error))
            torch.cuda.synchronize()
            rounds = max(5, min(30, int(self.longest / max(sum(one.seconds for one in each.values()), 1e-6))))
            times: dict[str, list[tuple[Any, Any]]] = {name: [] for name in each}
            for _ in range(rounds):
                for name, one in each.items():
                    times[name].append(_replayed(one.graph))
            torch.cuda.synchronize()
        for name, pairs in times.items():
            seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
            made[name] = _timing(seconds, each[name].calls, each[name].note)
        return {name: made[name] for name in sides}

    def _round(self, runs: Sequence[Run], repeats: bool) -> _Round:
        for run in (*runs[:2], runs[0]):  # what is compiled or chosen at first is not the question
            run()
        torch.cuda.synchronize()
        try:
            one = self._captured(runs, len(runs))
        except Exception as error:
            torch.cuda.synchronize()
            return _Round(_Plain(runs), len(runs), _seconds(_Plain(runs)), f"without a graph: {_said(error)}")
        if repeats and one.seconds < self.shortest and one.calls < self.most_calls:
            times = math.ceil(min(self.most_calls / one.calls, self.shortest / max(one.seconds, 1e-9)))
            return self._captured(runs, times * one.calls)
        return one

    def _captured(self, runs: Sequence[Run], calls: int) -> _Round:
        graph = self._graph(runs, calls)
        return _Round(graph, calls, _seconds(graph))

    def _graph(self, runs: Sequence[Run], calls: int) -> Any:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph`, which collects garbage and empties caches first, hundreds of times here.
        graph.capture_begin()
        try:
            for i in range(calls):
                runs[i % len(runs)]()
        finally:
            graph.capture_end()
        return graph


def _replayed(graph: Any) -> tuple[Any, Any]:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    return begin, end


def _seconds(graph: Any) -> float:
    times = []
    for _ in range(3):
        begin, end = _replayed(graph)
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times)


def _said(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return lines[0][:200]
