"""Samples to examples: go through all of them before training starts, then decode those that are used.

What is found is decided once: a sample that is too long or broken is left out and counted, or stops the run, and no
other takes its place.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from qvl.errors import MediaError, UsageError
from qvl.processing.measure import Measure, measure
from qvl.processing.processor import Processor
from qvl.processing.prompt import Example
from qvl.training.dataset import DataSet
from qvl.training.formats import DataError

T = TypeVar("T")
Progress = Callable[[int, int], None]  # samples gone through, of how many

# What a sample can be at fault for; anything else is the checkpoint's or a bug, and is not skipped.
_FAULTS = (DataError, MediaError, UsageError)
_REASONS = 5
# Samples a task, and tasks a worker in flight: enough to keep all busy, few enough to stop soon.
_CHUNK = 16
_AHEAD = 4


@dataclass(frozen=True)
class ExampleOptions:
    """What to do with samples.

    max_length: tokens of the longest sample that is used. on_long, on_bad_sample: for longer and for broken ones.
    check: "headers" reads sizes only, so damage further on shows when a picture is needed; "full" decodes everything.
    """

    max_length: int
    on_long: Literal["drop", "error"] = "drop"
    on_bad_sample: Literal["error", "skip"] = "error"
    check: Literal["headers", "full"] = "headers"


@dataclass(frozen=True)
class SetReport:
    """One set of a mix: samples (repeats too) by what became of them, and the tokens of those that are used."""

    name: str
    samples: int = 0
    used: int = 0
    too_long: int = 0
    bad: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


@dataclass(frozen=True)
class Report:
    """sets: in the order of the mix. reasons: why the first few samples were skipped, each naming file and index."""

    sets: tuple[SetReport, ...]
    reasons: tuple[str, ...] = ()

    def total(self, count: str) -> int:
        """The sum over all sets of one of the numbers of `SetReport`."""
        return sum(int(getattr(item, count)) for item in self.sets)

    def lines(self) -> list[str]:
        """For people: a line a set, then the reasons."""
        lines = []
        for item in self.sets:
            words = [f"{item.used} of {item.samples} samples used"]
            words += [f"{item.too_long} dropped as too long"] if item.too_long else []
            words += [f"{item.bad} skipped as bad"] if item.bad else []
            lines.append(f"{item.name}: {', '.join(words)}; {item.tokens} tokens, {item.supervised_tokens} supervised")
        return [*lines, *(f"skipped: {reason}" for reason in self.reasons)]

    def to_json(self) -> dict[str, Any]:
        return {"sets": [asdict(item) for item in self.sets], "reasons": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class Prepared:
    """The samples that are used. indices: int64 [N], into the data set, rising; the others int64 [N], of each."""

    indices: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    supervised_tokens: npt.NDArray[np.int64]
    report: Report


def prepare(
    dataset: DataSet,
    processor: Processor,
    options: ExampleOptions,
    workers: int = 0,
    on_progress: Progress | None = None,
) -> Prepared:
    """Read and measure every sample, those that repeat once, with `workers` threads (0: in this one).

    The result does not depend on `workers`. Raises DataError for the first sample in order that the options do not let
    pass, naming file, index and reason, and when no sample is left.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for i in range(len(dataset)):
        places.setdefault(dataset.key(i), []).append(i)
    tally = _Tally(dataset, options)
    firsts = [repeats[0] for repeats in places.values()]
    with closing(_in_order(lambda i: _look(dataset, processor, options, i), firsts, workers)) as results:
        for done, (repeats, result) in enumerate(zip(places.values(), results, strict=True), 1):
            tally.add(repeats, result)
            if on_progress is not None:
                on_progress(done, len(firsts))
    return tally.prepared()


class _Tally:
    """What `prepare` has found so far."""

    def __init__(self, dataset: DataSet, options: ExampleOptions) -> None:
        self._dataset, self._options = dataset, options
        self._counts = [Counter(samples=count) for count in dataset.counts]
        self._measures: dict[int, Measure] = {}
        self._reasons: list[str] = []

    def add(self, repeats: Sequence[int], result: Measure | DataError) -> None:
        """Take in a sample, which the mix has at all places of `repeats`. Raises DataError as the options say."""
        counts, times = self._counts[self._dataset.key(repeats[0])[0]], len(repeats)
        if isinstance(result, DataError):
            if self._options.on_bad_sample == "error":
                raise result
            counts["bad"] += times
            if len(self._reasons) < _REASONS:
                self._reasons.append(str(result))
        elif result.tokens > self._options.max_length:
            if self._options.on_long == "error":
                longer = f"{result.tokens} tokens are over the max_length of {self._options.max_length}"
                raise DataError(f"{self._dataset.where(repeats[0])}: {longer}")
            counts["too_long"] += times
        else:
            counts["used"] += times
            counts["tokens"] += times * result.tokens
            counts["supervised_tokens"] += times * result.supervised_tokens
            self._measures |= dict.fromkeys(repeats, result)

    def prepared(self) -> Prepared:
        """Raises DataError when no sample is left."""
        names = self._dataset.names
        sets = tuple(SetReport(name, **counts) for name, counts in zip(names, self._counts, strict=True))
        report = Report(sets, tuple(self._reasons))
        if not self._measures:
            raise DataError("no sample is left to train on: " + "; ".join(report.lines()))
        indices = sorted(self._measures)
        tokens = [(self._measures[i].tokens, self._measures[i].supervised_tokens) for i in indices]
        columns = np.asarray(tokens, np.int64).T
        return Prepared(np.asarray(indices, np.int64), columns[0].copy(), columns[1].copy(), report)


class ExampleSource:
    """The prepared samples as examples, decoded when they are asked for. Safe to use from several threads.

    cache_bytes: how much of what was decoded last is kept in memory; 0 keeps nothing. decode: gives an example in the
    place of `read`, as processes that run beside this one do.
    """

    decode: Callable[[int], Example] | None = None

    def __init__(self, dataset: DataSet, processor: Processor, prepared: Prepared, *, cache_bytes: int = 0) -> None:
        self._dataset, self._processor, self._prepared = dataset, processor, prepared
        self._cache = _Cache(cache_bytes)

    def __len__(self) -> int:
        return len(self._prepared.indices)

    def __getitem__(self, i: int) -> Example:
        """Raises what `read` does."""
        key = self._dataset.key(int(self._prepared.indices[i]))
        example = self._cache.get(key)
        if example is None:
            example = self.read(i) if self.decode is None else self.decode(i)
            self._cache.put(key, example)
        return example

    def read(self, i: int) -> Example:
        """Decode a sample, here and now. It may be pickled, and then takes neither cache nor `decode` with it.

        Raises DataError naming file and index when a sample can no longer be read or has another length now.
        """
        index = int(self._prepared.indices[i])
        messages = self._dataset[index].messages
        example = _named(self._dataset, index, lambda: self._processor.example(messages))
        expected = int(self._prepared.tokens[i])
        if len(example.prompt) != expected:
            changed = f"has {len(example.prompt)} tokens, and had {expected} when the data were checked"
            raise DataError(f"{self._dataset.where(index)}: {changed}; do not change data while they are in use")
        return example

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleSource, (self._dataset, self._processor, self._prepared)


def _look(dataset: DataSet, processor: Processor, options: ExampleOptions, i: int) -> Measure | DataError:
    """The lengths of a sample, or what is wrong with it."""
    try:
        messages = dataset[i].messages
        if options.check == "headers":
            return _named(dataset, i, lambda: measure(processor, messages))
        example = _named(dataset, i, lambda: processor.example(messages))
        return Measure(len(example.prompt), example.supervised_tokens)
    except DataError as error:
        return error


def _named(dataset: DataSet, i: int, read: Callable[[], T]) -> T:
    """What `read` gives; the errors of a sample say which it is."""
    try:
        return read()
    except _FAULTS as error:
        raise DataError(f"{dataset.where(i)}: {error}") from None


def _in_order(
    look: Callable[[int], Measure | DataError], items: Sequence[int], workers: int
) -> Generator[Measure | DataError, None, None]:
    """`map` over threads that stays a little ahead of its reader and stops with it."""
    if workers < 1:
        yield from map(look, items)
        return
    chunks = iter([items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)])
    pending: deque[Future[list[Measure | DataError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="qvl-data")
    stop = threading.Event()

    def work(chunk: Sequence[int]) -> list[Measure | DataError]:
        return [look(i) for i in chunk if not stop.is_set()]

    try:
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) >= workers * _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Cache:
    """Examples by least recent use, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._items: OrderedDict[tuple[int, int], tuple[Example, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> Example | None:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: tuple[int, int], example: Example) -> None:
        size = _bytes(example)
        with self._lock:
            if size > self._limit or key in self._items:
                return
            self._items[key] = (example, size)
            self._held += size
            while self._held > self._limit:
                self._held -= self._items.popitem(last=False)[1][1]


def _bytes(example: Example) -> int:
    prompt = example.prompt
    text = prompt.input_ids.nbytes + prompt.position_ids.nbytes + example.labels.nbytes
    return text + sum(vision.patches.nbytes for vision in prompt.visions)
