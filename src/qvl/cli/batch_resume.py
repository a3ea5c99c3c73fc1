"""Going on with a batch: which answers a file already holds, and whether they are answers to what is asked now."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvl.cli.batch_input import Ticket
from qvl.cli.batch_output import OutputFile
from qvl.cli.streams import OutputError
from qvl.errors import UsageError

FINGERPRINT = "fingerprint"
_HEAD = b'{"id": '
_REDO = "--retry runs again what has changed and keeps the rest, --restart runs everything anew"


@dataclass(frozen=True)
class Kept:
    """An answer in a file: whose it is, to what, and the bytes of its line."""

    key: str
    fingerprint: str
    failed: bool
    offset: int
    length: int


@dataclass(frozen=True)
class Found:
    """The answers in a file, in its order. end: the bytes that are whole lines; cut: whether something is behind."""

    kept: tuple[Kept, ...] = ()
    end: int = 0
    cut: bool = False


def scan(path: Path) -> Found:
    """Read what a batch has written; a last line without its end does not count.

    Raises UsageError for a file that is not a batch's.
    """
    kept: list[Kept] = []
    end, half = 0, False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                entry = _entry(line, end)
                half = not line.endswith(b"\n")
                if half and (kept or line.startswith(_HEAD) or _HEAD.startswith(line)):
                    break
                if entry is None:
                    raise UsageError(
                        f"{path}: line {number} was not written by a batch; name another file with -o, or write over "
                        "this one with --restart"
                    )
                kept.append(entry)
                end += len(line)
    except FileNotFoundError:
        return Found()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    return Found(tuple(kept), end, cut=half)


def _entry(line: bytes, offset: int) -> Kept | None:
    try:
        data = json.loads(line)
        key = f"line {data['line']}" if data["id"] is None else json.dumps(data["id"])
        return Kept(key, str(data[FINGERPRINT]), "error" in data, offset, len(line))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Earlier:
    """What an interrupted run has finished. In order it is the first records; else any."""

    def __init__(self, path: Path, found: Found, runs: Sequence[str], ordered: bool) -> None:
        """runs: digests of the settings, one of which is the first half of every fingerprint.

        Raises UsageError when it is another.
        """
        self._path, self._runs, self._ordered = path, runs, ordered
        self._kept = found.kept
        self._by_key = {entry.key: entry for entry in found.kept}
        if len(self._by_key) < len(self._kept):
            raise UsageError(f"{path}: has an id twice, so it cannot be gone on with; {_REDO}")
        if any(entry.fingerprint.partition("-")[0] not in runs for entry in self._kept):
            raise UsageError(
                f"{path}: was made with another model or other settings; --restart runs everything anew, -o names "
                "another file"
            )

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def failed(self) -> int:
        return sum(entry.failed for entry in self._kept)

    def has(self, ticket: Ticket) -> bool:
        """Whether a record is finished. Raises UsageError when its place or its content is no longer the same."""
        if self._ordered:
            if ticket.position >= len(self._kept):
                return False
            entry = self._kept[ticket.position]
            if entry.key != ticket.key:
                raise UsageError(
                    f"{self._path}: has {_named(entry.key)} where {_named(ticket.key)} should be: records have moved, "
                    f"or it was written with --unordered; {_REDO}"
                )
        elif ticket.key not in self._by_key:
            return False
        else:
            entry = self._by_key[ticket.key]
        if entry.fingerprint not in (fingerprint(run, ticket) for run in self._runs):
            raise UsageError(f"{self._path}: {ticket.where} has changed since it was answered; {_REDO}")
        return True

    def check(self, tickets: list[Ticket]) -> None:
        """Raise UsageError unless every finished record is one of these and has not changed."""
        finished = sum(self.has(ticket) for ticket in tickets)
        if finished < len(self._kept):
            raise UsageError(f"{self._path}: has answers to records that are no longer asked; {_REDO}")


class Pool:
    """Answers put aside by --retry, beside the output until everything has been answered: those that still hold."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".retry")
        self._by_fingerprint: dict[tuple[str, str], Kept] = {}

    def open(self) -> None:
        """Look for one that is there. Raises UsageError."""
        entries = (entry for entry in scan(self.path).kept if not entry.failed)
        self._by_fingerprint = {(entry.key, entry.fingerprint): entry for entry in entries}

    def take(self, output: OutputFile, found: Found) -> None:
        """Move the answers of the output here. Killed at any byte, nothing is lost: what is here twice is the same.

        Raises OutputError and UsageError.
        """
        aside = scan(self.path)
        try:
            with output.path.open("rb") as source, self.path.open("ab") as target:
                target.truncate(aside.end)
                remaining = found.end
                while block := source.read(min(remaining, 1 << 20)):
                    target.write(block)
                    remaining -= len(block)
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from None
        output.cut(0)

    def drop(self) -> None:
        """Everything is answered, or to be answered anew."""
        self._by_fingerprint = {}
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def line(self, ticket: Ticket, runs: Sequence[str]) -> tuple[bytes, ...]:
        """The line of a record that was answered and has not changed since; () if there is none.

        runs: see `Earlier`.
        """
        marks = ((ticket.key, fingerprint(run, ticket)) for run in runs)
        entry = next((self._by_fingerprint[mark] for mark in marks if mark in self._by_fingerprint), None)
        if entry is None:
            return ()
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                return (file.read(entry.length),)
        except OSError:  # then it is answered again
            return ()


def fingerprint(run: str, ticket: Ticket) -> str:
    """What an answer is the answer to: the settings of the run and the record."""
    return f"{run}-{ticket.digest}"


def unfinished(tickets: list[Ticket], earlier: Earlier) -> Iterator[Ticket]:
    """The records still to be answered."""
    return (ticket for ticket in tickets if not earlier.has(ticket))


def _named(key: str) -> str:
    return key if key.startswith("line ") else f"id {key}"
