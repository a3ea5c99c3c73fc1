"""The run of a batch: records in, whole lines out, and a count of both."""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qvl.cli import boxes, render
from qvl.cli.answer import answer_fields
from qvl.cli.batch_input import Records, Ticket
from qvl.cli.batch_output import InOrder, Sink
from qvl.cli.batch_record import Defaults, read_record
from qvl.cli.batch_resume import FINGERPRINT, Earlier, Pool, fingerprint
from qvl.cli.streams import to_stderr
from qvl.errors import QvlError, UnforeseenError
from qvl.runtime.records import Request

if TYPE_CHECKING:
    from qvl.messages import Message
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import Finished

_PATIENCE = 0.02  # seconds between looks at a silent pipe
_SHOWN = 5  # failures told of as they come; the rest are in the output


class StrictError(QvlError):
    """A record failed where --strict allows none."""


@dataclass(frozen=True)
class Job:
    """What is asked of whom. sampling: what flags say of it. debug: show where an error nobody foresaw came from.

    runs: digest of all that is the same for every record, and behind it those of earlier versions.
    """

    engine: Engine
    records: Records
    defaults: Defaults
    runs: tuple[str, ...]
    sampling: dict[str, Any]
    batch_size: int
    check_memory: bool
    strict: bool
    ordered: bool
    stats: bool
    quiet: bool
    debug: bool


@dataclass
class Count:
    """Records whose line is written. failed: those among them with an error; before: those of earlier runs."""

    written: int = 0
    failed: int = 0
    before: int = 0


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a request is known by."""

    ticket: Ticket
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Line:
    """hint: behind the error, where it is told and not written."""

    ticket: Ticket
    error: str | None = None
    hint: str = ""


@dataclass
class Run:
    """One pass over the records. on_written: called with the count after each line."""

    job: Job
    sink: Sink
    earlier: Earlier | None = None
    pool: Pool | None = None
    on_written: Callable[[Count], None] = lambda _count: None
    count: Count = field(default_factory=Count)

    def __post_init__(self) -> None:
        before = 0
        if self.earlier is not None:
            before = len(self.earlier)
            self.count = Count(before, self.earlier.failed, before)
        self._order = InOrder(before) if self.job.ordered else None
        self._waiting: dict[int, _Line] = {}

    def go(self, before_first: Callable[[], None]) -> None:
        """Answer what is not answered. before_first: called once there is something for the model to do.

        Raises StrictError, OutputError, UsageError for an input that changes, and what Paddle raises.
        """
        requests = self._requests()
        try:
            first = _first(requests)
            if first is None:
                return
            before_first()
            engine, job = self.job.engine, self.job
            every = _with_first(first, requests)
            for finished in engine.serve(every, batch_size=job.batch_size, check_memory=job.check_memory):
                self._finish(finished)
        finally:
            requests.close()
            if self._order is not None:
                self._order.close()

    def _requests(self) -> Generator[Request | None, None, None]:
        """What the model has to answer, None for nothing yet; all other records are dealt with on the way."""
        job = self.job
        for item in job.records:
            if item is None:
                yield None
                continue
            ticket = item.ticket
            if self.earlier is not None and self.earlier.has(ticket):
                continue
            if self.pool is not None and (kept := self.pool.line(ticket, job.runs)):
                self._put(_Line(ticket), kept[0])
                continue
            try:
                if isinstance(item.data, QvlError):
                    raise item.data
                question = read_record(item.data, job.defaults)
                sampling = job.engine.sampling(**{**job.sampling, **question.sampling})
            except QvlError as error:
                self._fail(ticket, error)
            else:
                yield Request(_Asked(ticket, question.messages), question.messages, sampling)

    def _finish(self, finished: Finished) -> None:
        asked = finished.key
        assert isinstance(asked, _Asked)
        if finished.answer is None or finished.prompt is None:
            self._fail(asked.ticket, finished.error or QvlError("no answer came"))
            return
        answer = finished.answer
        found, picture = boxes.located(answer.marked_text, asked.messages, finished.prompt)
        fields = answer_fields(self.job.engine, finished.prompt, answer, boxes.as_json(found, picture))
        stats = fields.pop("stats")
        if self.job.stats:
            fields["stats"] = dataclasses.asdict(stats)
        self._put(_Line(asked.ticket), self._encoded(asked.ticket, fields))

    def _fail(self, ticket: Ticket, error: QvlError) -> None:
        unclear = isinstance(error, UnforeseenError) and not self.job.debug
        hint = " (not foreseen; --debug shows where)" if unclear else ""
        if self.job.debug and error.__cause__ is not None:
            to_stderr("".join(traceback.format_exception(error.__cause__)))
        text = " ".join(str(error).split())
        place = {} if ticket.line is None else {"line": ticket.line}
        self._put(_Line(ticket, text, hint), self._encoded(ticket, {"error": text, **place}))

    def _encoded(self, ticket: Ticket, fields: dict[str, Any]) -> bytes:
        whole = {"id": ticket.id, **fields, FINGERPRINT: fingerprint(self.job.runs[0], ticket)}
        # Half a surrogate pair, as file names can have, stays what JSON calls it.
        return (json.dumps(whole, ensure_ascii=self.sink.ascii) + "\n").encode("utf-8", "backslashreplace")

    def _put(self, line: _Line, encoded: bytes) -> None:
        if self._order is None:
            self._write(line, encoded)
            return
        self._waiting[line.ticket.position] = line
        for position, ready in self._order.put(line.ticket.position, encoded):
            self._write(self._waiting.pop(position), ready)

    def _write(self, line: _Line, encoded: bytes) -> None:
        if line.error is not None:
            if self.job.strict:
                raise StrictError(f"{line.ticket.where}: {line.error}{line.hint} (--strict ends the run here)")
            self.count.failed += 1
            if self.count.failed <= _SHOWN:
                render.note(f"{line.ticket.where}: {line.error}{line.hint}", self.job.quiet)
        self.sink.append(encoded)
        self.count.written += 1
        self.on_written(self.count)


def _first(requests: Iterator[Request | None]) -> Request | None:
    """Waits for one; None when none comes."""
    for request in requests:
        if request is not None:
            return request
        time.sleep(_PATIENCE)
    return None


def _with_first(first: Request, rest: Iterator[Request | None]) -> Iterator[Request | None]:
    yield first
    yield from rest
