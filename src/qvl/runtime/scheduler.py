"""Continuous batching: requests join the running batch as places become free and leave it as they finish."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvl.errors import MemoryLimitError, QvlError, UnforeseenError, UsageError
from qvl.processing.prompt import Prompt
from qvl.runtime import memory
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
        if error is not None:
            return Finished(self.key, None, self.answering.prompt, _told(error))
        return Finished(self.key, engine.answer(self.answering), self.answering.prompt, None)


@dataclass(eq=False)
class _Read:
    """A request whose prompt is laid out, or is being laid out by a thread.

    crowd: so many answers that were going left too little memory to begin it.
    """

    request: Request
    prompt: Future[Prompt]
    crowd: int = sys.maxsize


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
    batch = _Batch(engine, batch_size)
    with closing(_Reader(engine, requests)) as reader:
        while True:
            yield from _joined(engine, reader, batch, check_memory)
            if not batch.going:
                return
            batch.advance()
            yield from batch.finished()


# Of what has finished nothing may be left here, not even in a variable: the next request is measured by the memory that
# is free, and caches and pixels are what takes it.


class _Batch:
    """The requests that are being answered, at most `size`."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.size = size
        self.going: list[_Running] = []
        self._engine = engine
        self._together = size  # how many take a step at once: fewer after one of all of them has failed

    def advance(self) -> None:
        """Take all a step further.

        What ends a step of several shows in halves of them: whose fault it is, or for how many there is memory.
        """
        waiting = [running.answering for running in self.going]
        while waiting:
            together = waiting[: self._together]
            try:
                self._engine.step(together)
            except QvlError:
                raise
            except Exception as error:
                if len(together) > 1:
                    self._together = len(together) // 2
                    continue
                together[0].error = error
            del waiting[: len(together)]

    def finished(self) -> list[Finished]:
        """Those that have ended, which leave."""
        finished = [running.finished(self._engine) for running in self.going if running.done]
        self.going[:] = [running for running in self.going if not running.done]
        if finished:
            self._together = self.size
        return finished


def _joined(engine: Engine, reader: _Reader, batch: _Batch, check_memory: bool) -> Iterator[Finished]:
    """Have requests join as long as there are places and memory; those that end at once are given."""
    while len(batch.going) < batch.size and (read := reader.head(wait=not batch.going)) is not None:
        if len(batch.going) >= read.crowd:
            return
        outcome = _join(engine, read, batch.going, check_memory)
        if outcome is False:
            return
        reader.pop()
        del read
        if outcome is not True:
            yield outcome


def _join(engine: Engine, read: _Read, going: list[_Running], check_memory: bool) -> Finished | bool:
    """Begin an answer. False: there is no memory for it until one that is going has ended."""
    prompt = None
    try:
        prompt = read.prompt.result()
        if check_memory and not _fits(engine, prompt, read.request.sampling, going):
            return False
        answering = engine.begin(prompt, read.request.sampling)
    except Exception as error:
        if going and prompt is not None and memory.is_shortage(error):
            read.crowd = len(going)  # trying again takes as long as a prompt does, so not at every step
            return False
        failed = Finished(read.request.key, None, None if prompt is None else prompt.without_patches(), _told(error))
        del read, prompt  # the error keeps this frame
        return failed
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


def _told(error: Exception) -> QvlError:
    """The error of one request, which stops no other; of what its traceback held nothing is kept but the lines."""
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, QvlError):
        return error
    text = " ".join(str(error).split())
    named = f"{type(error).__name__}{': ' if text else ''}{text}"
    if memory.is_shortage(error):
        told: QvlError = MemoryLimitError(f"there was not enough memory ({named})")
    else:
        told = UnforeseenError(named)
    told.__cause__ = error
    return told
