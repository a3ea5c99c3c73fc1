"""The files of a data set: a JSON list, held as it is, or JSON lines, of which only the places are held."""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from typing import IO, Protocol

from qvl.errors import UsageError
from qvl.processing.media import reason
from qvl.training.formats import DataError
from qvl.training.placing import kind_of

_BOM = b"\xef\xbb\xbf"
_LINE_SUFFIXES = (".jsonl", ".ndjson")


class Source(Protocol):
    """The records of one file. digest: SHA-256 of its bytes, hexadecimal."""

    name: str
    digest: str

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """How errors name a record, counted from 0."""
        ...

    def record(self, index: int) -> object:
        """The parsed record. Raises DataError when its line is not JSON or the file has become unreadable."""
        ...


class ListSource:
    """A JSON list."""

    def __init__(self, name: str, records: list[object], digest: str) -> None:
        self.name, self._records, self.digest = name, records, digest

    def __len__(self) -> int:
        return len(self._records)

    def where(self, index: int) -> str:
        return f"{self.name}: sample {index}"

    def record(self, index: int) -> object:
        return self._records[index]


class LineSource:
    """JSON lines: 16 bytes of memory a record, however long it is. Blank lines do not count."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        self._offsets, self._lines = array("q"), array("q")
        sha = hashlib.sha256()
        offset = 0
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                sha.update(line)
                if line.removeprefix(_BOM).strip():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        self.digest = sha.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, index: int) -> str:
        return f"{self.name}: sample {index} (line {self._lines[index]})"

    def record(self, index: int) -> object:
        try:  # a file of its own each time, so threads and forks do not share a place
            with open_file(self._path) as file:
                file.seek(self._offsets[index])
                line = file.readline()
        except (UsageError, OSError) as error:
            raise DataError(f"{self.where(index)}: the file can no longer be read ({error})") from None
        return parse(line, self.where(index))


def open_source_file(path: Path) -> Source | dict[str, object]:
    """Open a file of samples, by its content: a list, lines, or (a dict) one object that is not a sample of lines.

    Raises UsageError for a file that cannot be opened, DataError for one that is empty or not JSON.
    """
    with open_file(path) as file:
        first = _first_line(file)
        more = bool(_first_line(file))
    if not first:
        raise DataError(f"{path}: is empty")
    if path.suffix.lower() in _LINE_SUFFIXES or (more and _is_object(first)):
        return LineSource(path)
    with open_file(path) as file:
        data = file.read()
    value = parse(data, str(path))
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        raise DataError(f"{path}: a list of samples was expected, not {kind_of(value)}")
    if not value:
        raise DataError(f"{path}: has no samples")
    return ListSource(str(path), value, hashlib.sha256(data).hexdigest())


def open_file(path: Path) -> IO[bytes]:
    """Open for reading. Raises UsageError in one line."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({reason(error)})") from None


def parse(data: bytes, where: str) -> object:
    """JSON from UTF-8. Raises DataError with the place."""
    try:
        return json.loads(data.removeprefix(_BOM).decode("utf-8"))
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "(line " in where else f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where}: not valid JSON ({place}: {error.msg})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # more digits than Python converts
        raise DataError(f"{where}: not valid JSON ({str(error).partition(';')[0]})") from None


def _first_line(file: IO[bytes]) -> bytes:
    """The next line that is not blank, b"" at the end."""
    for line in file:
        if stripped := line.removeprefix(_BOM).strip():
            return stripped
    return b""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
