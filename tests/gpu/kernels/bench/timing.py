"""How long calls take: graphs of many of them, replayed in turns, so that a drift of the clock is everybody's."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Failure:
    """Why there is no timing."""

    reason: str


class Clock(Protocol):
    def measure(self, sides: Mapping[str, Sequence[Run]], *, repeats: bool = True) -> dict[str, Timing | Failure]:
        """sides: calls that are made in turn; with `repeats` as often as a round needs to be long enough."""
        ...


def _timing(times: list[float], calls: int) -> Timing:
    """times: seconds of each round."""
    ordered = sorted(seconds / calls * 1e6 for seconds in times)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Timing(at(0.5), at(0.1), at(0.9), len(times), calls)


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


class GraphClock:
    """On a card. A round is a replay of a graph of at least `shortest` seconds; all rounds of a case take `longest`."""

    def __init__(self, shortest: float = 2e-4, longest: float = 0.3, most_calls: int = 128) -> None:
        self.shortest, self.longest, self.most_calls = shortest, longest, most_calls
        self.stream = torch.cuda.Stream()

    def measure(self, sides: Mapping[str, Sequence[Run]], *, repeats: bool = True) -> dict[str, Timing | Failure]:
        graphs: dict[str, tuple[Any, int, float]] = {}
        made: dict[str, Timing | Failure] = {}
        torch.cuda.synchronize()  # operands were made on another stream
        with torch.cuda.stream(self.stream):
            for name, runs in sides.items():
                try:
                    graphs[name] = self._captured(runs, repeats)
                except Exception as error:  # as above
                    made[name] = Failure(_said(error))
            torch.cuda.synchronize()
            once = sum(seconds for _, _, seconds in graphs.values())
            rounds = max(5, min(30, int(self.longest / max(once, 1e-6))))
            events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in graphs}
            for _ in range(rounds):
                for name, (graph, _, _) in graphs.items():
                    ends = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                    ends[0].record()
                    graph.replay()
                    ends[1].record()
                    events[name].append(ends)
            torch.cuda.synchronize()
        for name, pairs in events.items():
            made[name] = _timing([begin.elapsed_time(end) / 1e3 for begin, end in pairs], graphs[name][1])
        return {name: made[name] for name in sides}

    def _captured(self, runs: Sequence[Run], repeats: bool) -> tuple[Any, int, float]:
        """A graph, how many calls it has, and about how many seconds it takes."""
        for run in (*runs[:2], runs[0]):  # what is compiled or chosen at first is not the question
            run()
        graph, calls = self._graph(runs, len(runs))
        seconds = self._seconds(graph)
        if repeats and seconds < self.shortest and calls < self.most_calls:
            times = min(-(-self.most_calls // calls), -(-int(self.shortest * 1e9) // max(int(seconds * 1e9), 1)))
            graph, calls = self._graph(runs, times * calls)
            seconds = self._seconds(graph)
        return graph, calls, seconds

    def _graph(self, runs: Sequence[Run], calls: int) -> tuple[Any, int]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph`, which collects garbage and empties caches first, hundreds of times here.
        graph.capture_begin()
        try:
            for i in range(calls):
                runs[i % len(runs)]()
        finally:
            graph.capture_end()
        return graph, calls

    def _seconds(self, graph: Any) -> float:
        times = []
        for _ in range(3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return min(times)


def _said(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return lines[0][:200]
