"""Continuous batching: requests join the running batch as places become free and leave it as they finish."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvl.errors import MemoryLimitError, QvlError, UsageError
from qvl.processing.prompt import Prompt
from qvl.runtime.answering import Answering
from qvl.runtime.records import Finished, Request, Sampling

if TYPE_CHECKING:
    from qvl.runtime.engine import Engine

__all__ = ["Finished", "Request", "serve"]

# Requests whose media are read before there is a place for them. Pixels are large: a long clip takes hundreds of MB.
_AHEAD = 2
_LINGER = 1.0  # seconds that the thread has to notice that nothing more is wanted
_PATIENCE = 0.02  # seconds until requests that had nothing yet are asked again, when nothing else is to be done


@dataclass(frozen=True, eq=False)
class _Running:
    """A request in the batch."""

    key: object
    answering: Answering

    @property
    def done(self) -> bool:
        return self.answering.finish_reason is not None or self.answering.error is not None

    def finished(self, engine: Engine) -> Finished:
        error = self.answering.error
        answer = engine.answer(self.answering) if error is None else None
        return Finished(self.key, answer, self.answering.prompt, error)


@dataclass(frozen=True, eq=False)
class _Read:
    """A request whose prompt is laid out, or is being laid out by a thread."""

    request: Request
    prompt: Future[Prompt]


class _Reader:
    """Takes requests a little ahead of the batch and reads their media in a thread; in order."""

    def __init__(self, engine: Engine, requests: Iterable[Request | None]) -> None:
        self._engine = engine
        self._requests = iter(requests)
        self._over = False
        self._read: deque[_Read] = deque()
        self._wanted: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        # An executor's thread would be waited for at the end, up to the time limit of a dead connection.
        self._thread = threading.Thread(target=self._work, name="qvl-read", daemon=True)
        self._thread.start()

    def head(self, *, wait: bool) -> _Read | None:
        """The next request if it is read, or if `wait`, in any case; None also when there are no more."""
        while not self._take() and wait and not self._read and not self._over:
            time.sleep(_PATIENCE)
        if self._read and (wait or self._read[0].prompt.done()):
            return self._read[0]
        return None

    def _take(self) -> bool:
        """Take requests ahead, as far as they are there. True: as many as may be, or all."""
        while len(self._read) < _AHEAD and not self._over:
            try:
                request = next(self._requests)
            except StopIteration:
                self._over = True
                break
            if request is None:
                return False
            self._read.append(_Read(request, Future()))
            self._wanted.put(self._read[-1])
        return True

    def pop(self) -> None:
        """The head is dealt with."""
        self._read.popleft()

    def close(self) -> None:
        """Have the thread end; one that is in the middle of reading is left to find it out by itself."""
        for read in self._read:
            read.prompt.cancel()
        self._wanted.put(None)
        self._thread.join(_LINGER)

    def _work(self) -> None:
        while (read := self._wanted.get()) is not None:
            if read.prompt.set_running_or_notify_cancel():
                self._lay_out(read)
            del read  # with its pixels, while there is nothing to do

    def _lay_out(self, read: _Read) -> None:
        try:
            read.prompt.set_result(self._engine.laid_out(read.request.conversation))
        except BaseException as error:
            read.prompt.set_exception(error)


def serve(
    engine: Engine, requests: Iterable[Request | None], *, batch_size: int, check_memory: bool
) -> Iterator[Finished]:
    """See `Engine.serve`."""
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    return _serve(engine, requests, batch_size, check_memory)


def _serve(
    engine: Engine, requests: Iterable[Request | None], batch_size: int, check_memory: bool
) -> Iterator[Finished]:
    going: list[_Running] = []
    with closing(_Reader(engine, requests)) as reader:
        while True:
            yield from _joined(engine, reader, going, batch_size, check_memory)
            if not going:
                return
            yield from _stepped(engine, going)


# Of what has finished nothing may be left here, not even in a variable: the next request is measured by the memory that
# is free, and caches and pixels are what takes it.


def _joined(
    engine: Engine, reader: _Reader, going: list[_Running], batch_size: int, check_memory: bool
) -> Iterator[Finished]:
    """Have requests join as long as there are places and memory; those that end at once are given."""
    while len(going) < batch_size and (read := reader.head(wait=not going)) is not None:
        outcome = _join(engine, read, going, check_memory)
        if outcome is False:
            return
        reader.pop()
        del read
        if outcome is not True:
            yield outcome


def _stepped(engine: Engine, going: list[_Running]) -> list[Finished]:
    """Take all a step further; those that have ended leave and are given."""
    engine.step([running.answering for running in going])
    finished = [running.finished(engine) for running in going if running.done]
    going[:] = [running for running in going if not running.done]
    return finished


def _join(engine: Engine, read: _Read, going: list[_Running], check_memory: bool) -> Finished | bool:
    """Begin an answer. False: there is no memory for it until one that is going has ended."""
    prompt = None
    try:
        prompt = read.prompt.result()
        if check_memory and not _fits(engine, prompt, read.request.sampling, going):
            return False
        answering = engine.begin(prompt, read.request.sampling)
    except QvlError as error:
        return Finished(read.request.key, None, None if prompt is None else prompt.without_patches(), error)
    running = _Running(read.request.key, answering)
    if running.done:
        return running.finished(engine)
    going.append(running)
    return True


def _fits(engine: Engine, prompt: Prompt, sampling: Sampling, going: Sequence[_Running]) -> bool:
    """Whether there is memory beside the answers that are going; raises MemoryLimitError when there are none."""
    try:
        engine.check_memory(prompt, sampling, promised=sum(running.answering.cache.untouched for running in going))
    except MemoryLimitError:
        if going:
            return False
        raise
    return True
