"""What qvl writes into a model folder that it has downloaded: where the files came from, and what is in them."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.hub.digest import Digest

NAME = ".qvl.json"
USED = ".qvl-used"  # its time is when the model was last loaded
_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """A file of a model. sha256: as it was downloaded. stated: what the source says of its content, if anything."""

    path: str
    size: int
    sha256: str
    stated: Digest | None = None


@dataclass(frozen=True)
class Manifest:
    """A downloaded model.

    source: the key of the source, such as "huggingface". revision: its commit there. Times in seconds since 1970.
    """

    model: str
    source: str
    revision: str
    files: tuple[FileRecord, ...]
    downloaded_at: float
    verified_at: float

    def broken(self, folder: Path) -> list[FileRecord]:
        """The files that are missing or have another size; contents are not read."""
        return [record for record in self.files if _size(folder / record.path) != record.size]


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none that can be understood."""
    try:
        data = json.loads((folder / NAME).read_text(encoding="utf-8"))
        files = tuple(_record(entry) for entry in data["files"])
        times = (float(data["downloaded_at"]), float(data["verified_at"]))
        return Manifest(str(data["model"]), str(data["source"]), str(data["revision"]), files, *times)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, manifest: Manifest) -> None:
    """Write it, whole or not at all. Raises OSError."""
    text = json.dumps({"version": _VERSION, **dataclasses.asdict(manifest)}, indent=1)
    handle, temporary = tempfile.mkstemp(prefix=NAME, dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(folder / NAME)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _record(entry: Any) -> FileRecord:
    path = str(entry["path"])
    if Path(path).name != path:
        raise ValueError("a file outside the folder")
    stated = entry.get("stated")
    digest = Digest(stated["kind"], str(stated["value"])) if stated else None
    return FileRecord(path, int(entry["size"]), str(entry["sha256"]), digest)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
