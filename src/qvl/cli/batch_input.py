"""The questions of a batch: JSON lines from a file or a pipe, each with its id and a digest of what it asks."""

from __future__ import annotations

import hashlib
import json
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from qvl.errors import UsageError

_BOM = b"\xef\xbb\xbf"
_DIGITS = 12  # of a digest, in hexadecimal: it is to show a change, not to withstand anybody

Id = str | int


@dataclass(frozen=True)
class Ticket:
    """Which record: enough to know it again.

    position: among the records of the run, from 0. id: None where a line has none of its own that could be read and
    its number is another's. line: from 1, None for what did not come from lines. digest: of everything but the id.
    """

    position: int
    id: Id | None
    line: int | None
    digest: str

    @property
    def key(self) -> str:
        """Unlike any other record's; 1 and "1" are two ids."""
        return f"line {self.line}" if self.id is None else json.dumps(self.id)

    @property
    def where(self) -> str:
        """How messages name it."""
        if self.line is None:
            return str(self.id)
        return f"line {self.line}" if self.id in (None, self.line) else f"line {self.line} (id {json.dumps(self.id)})"


@dataclass(frozen=True)
class Item:
    """A record as it was read. data: what JSON says, or why it cannot be used."""

    ticket: Ticket
    data: Mapping[str, object] | UsageError


class Records(Protocol):
    """Where records come from.

    name: as the user gave it. root: what relative paths of media start from, None for the working directory.
    tickets: of all records, None when they are only known as they come.
    """

    name: str
    root: Path | None
    tickets: list[Ticket] | None

    def __iter__(self) -> Iterator[Item | None]:
        """None: there is no record yet, but there may be one later."""
        ...


class FileRecords:
    """JSON lines in a file, read once for ids and digests and again as they are needed."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises UsageError for a file that cannot be read and for an id that two lines have."""
        self.name, self._path = name, path
        self.root: Path | None = path.parent
        with _opened(path, name) as file:
            labels = [label for label, _ in _labelled(file)]
        claimed: dict[str, int] = {}
        for label in labels:
            if label.id is None:
                continue
            key = json.dumps(label.id)
            if key in claimed:
                hint = "; a record without an id has the number of its line" if isinstance(label.id, int) else ""
                raise UsageError(f"{name}: lines {claimed[key]} and {label.line} have the same id {key}{hint}")
            claimed[key] = label.line
        self.tickets: list[Ticket] | None = [
            Ticket(position, _id(label, claimed), label.line, label.digest) for position, label in enumerate(labels)
        ]

    def __iter__(self) -> Iterator[Item]:
        """What was added to the file since is left for another run. Raises UsageError for any other change."""
        tickets, count = self.tickets or [], 0
        with _opened(self._path, self.name) as file:
            for ticket, (label, data) in zip(tickets, _labelled(file), strict=False):
                if label.digest != ticket.digest:
                    raise UsageError(f"{self.name}: line {label.line} was changed during the run; start it again")
                yield Item(ticket, data)
                count += 1
        if count < len(tickets):
            raise UsageError(f"{self.name}: was cut short during the run; start it again")


class StreamRecords:
    """JSON lines from a pipe, which can be read only once: an id that was there before is an error of its record."""

    tickets: list[Ticket] | None = None

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name, self._stream = name, stream
        self.root: Path | None = Path()

    def __iter__(self) -> Iterator[Item | None]:
        """None while the other end of the pipe is silent, so that what came before can be answered meanwhile."""
        claimed: dict[str, int] = {}
        number = position = 0
        for line in _arriving(self._stream):
            if line is None:
                yield None
                continue
            number += 1
            if (parsed := _parsed_line(number, line)) is None:
                continue
            label, data = parsed
            id = _id(label, claimed)  # noqa: A001
            key = json.dumps(id)
            if id is not None and key in claimed:
                data = UsageError(f"the id {key} is that of line {claimed[key]}")
                id = None  # noqa: A001
            claimed.setdefault(key, label.line)
            yield Item(Ticket(position, id, label.line, label.digest), data)
            position += 1


class ListRecords:
    """Records that were made here, each with its own id."""

    root: Path | None = None

    def __init__(self, name: str, records: Iterable[tuple[Id, Mapping[str, object]]]) -> None:
        """Raises UsageError for an id that occurs twice."""
        self.name = name
        self._records = list(records)
        self.tickets: list[Ticket] | None = []
        seen: dict[Id, int] = {}
        for position, (id, data) in enumerate(self._records):  # noqa: A001
            if id in seen:
                raise UsageError(f"{id} was given twice, as number {seen[id] + 1} and {position + 1} of MEDIA")
            seen[id] = position
            self.tickets.append(Ticket(position, id, None, digest(data)))

    def __iter__(self) -> Iterator[Item]:
        for ticket, (_, data) in zip(self.tickets or [], self._records, strict=True):
            yield Item(ticket, data)


def read_lines(path: Path, name: str) -> Records:
    """The records of a file; one that cannot be read twice, such as a named pipe, is read as it comes.

    Raises UsageError.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        if not regular and not path.is_dir():
            return StreamRecords(path.open("rb"), name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    return FileRecords(path, name)


def digest(data: object) -> str:
    """Of anything that JSON can hold; the order of keys does not matter."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return _digest(text.encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """The file for reading. Raises UsageError, also when it fails later."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError | ValueError) -> UsageError:
    return UsageError(f"--batch {name}: cannot be read ({getattr(error, 'strerror', None) or error})")


@dataclass(frozen=True)
class _Label:
    """A line: its number and digest, and its id; None where it cannot be told."""

    line: int
    id: Id | None
    digest: str


def _id(label: _Label, claimed: Mapping[str, int]) -> Id | None:
    """A line that cannot be read goes by its number, unless that is the id of another."""
    return label.line if label.id is None and str(label.line) not in claimed else label.id


def _arriving(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines as they come, the last one perhaps without its end; None where none is there yet.

    What cannot be asked whether it has something (no file, or a pipe on Windows) is waited for.
    """
    try:
        source = stream.fileno()
    except (OSError, ValueError):
        source = None
    if source is None or sys.platform == "win32":
        yield from stream
        return
    # Past the stream's own buffer, which would hide from `select` what it has read already.
    begun: list[bytes] = []  # pieces of a line, which can be long: pictures may lie in it
    while True:
        if not select.select([source], [], [], 0)[0]:
            yield None
            continue
        if not (data := os.read(source, 1 << 16)):
            break
        first, *others = data.split(b"\n")
        begun.append(first)
        for piece in others:
            yield b"".join(begun)
            begun = [piece]
    if rest := b"".join(begun):
        yield rest


_Labelled = tuple[_Label, Mapping[str, object] | UsageError]


def _labelled(lines: Iterable[bytes]) -> Iterator[_Labelled]:
    return (parsed for number, line in enumerate(lines, 1) if (parsed := _parsed_line(number, line)) is not None)


def _parsed_line(number: int, line: bytes) -> _Labelled | None:
    """What line `number`, from 1, says; None for an empty one."""
    text = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
    if not text:
        return None
    try:
        data = _parsed(text)
        mark = digest({key: value for key, value in data.items() if key != "id"})
        given = number if data.get("id") is None else data["id"]
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise UsageError(f"id is {json.dumps(given)[:60]}; expected text or a whole number")
        return _Label(number, given, mark), data
    except RecursionError:
        return _Label(number, None, _digest(text)), UsageError("JSON nested too deeply")
    except UsageError as error:
        return _Label(number, None, _digest(text)), error


def _parsed(text: bytes) -> dict[str, object]:
    """An object, with a bare list of messages as one too. Raises UsageError."""
    try:
        data = json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UsageError(f"not valid JSON (column {error.colno}: {error.msg})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 (byte {error.start + 1})") from None
    except ValueError as error:  # NaN and its like, or more digits than Python converts
        raise UsageError(f"not valid JSON ({str(error).partition(';')[0]})") from None
    if isinstance(data, list):
        return {"messages": data}
    if not isinstance(data, dict):
        raise UsageError("an object was expected, with messages or a prompt")
    return data


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a number in JSON")
