"""What a source says it has: files with sizes, addresses and digests; and which of them a model needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from qvl.errors import DownloadError
from qvl.hub.digest import Digest
from qvl.model.checkpoint import PROCESSOR_FILES

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLE = "model_state.pdparams"
# Small files of a model, in the order in which they are fetched.
SMALL_FILES = (CONFIG, *PROCESSOR_FILES, "quantize_config.json", "quant_config.json", "LICENSE")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_ODD = re.compile(r"[\x00-\x1f\x7f\\:]")


class SourceError(DownloadError):
    """Something that is wrong with a source, or on the way to it: another source may do better.

    passing: whether it may go by itself. wait: seconds the source asks to be left alone, if it says. status: that of an
    answer which was no file.
    """

    def __init__(
        self, message: str, *, passing: bool = False, wait: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.passing = passing
        self.wait = wait
        self.status = status


@dataclass(frozen=True)
class RemoteFile:
    """A file as its source states it.

    path: its name in the model's folder. size: in bytes. url: where its bytes are, at a fixed revision where the
    source has revisions. digest: None when the source states none; the address, `tag` and size then tell contents
    apart.
    """

    path: str
    size: int
    url: str
    digest: Digest | None = None
    tag: str = ""

    @property
    def key(self) -> str:
        """What the content is called while it is on its way: the same for the same bytes, whatever the source."""
        if self.digest is not None:
            return f"{self.digest.kind}-{self.digest.value}"
        text = f"{self.url}\n{self.tag}\n{self.size}"
        return f"at-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


@dataclass(frozen=True)
class Listing:
    """All that a source has of a model. source: its key. revision: the commit, or "" where there are none."""

    source: str
    model: str
    revision: str
    files: tuple[RemoteFile, ...]

    def needed(self) -> tuple[RemoteFile, ...]:
        """The files that qvl reads: small ones and one set of weights, safetensors before anything else.

        Raises SourceError for a model without weights of a kind that qvl reads, or names that lead out of its folder.
        """
        files = {}
        for file in self.files:
            check_name(file.path)
            files[file.path] = file
        if CONFIG not in files:
            raise SourceError(f"{self.model} has no {CONFIG} there")
        weights = [name for name in sorted(files) if _SHARD.fullmatch(name)]
        if INDEX in files and weights:
            weights.insert(0, INDEX)
        else:
            weights = [name for name in (SINGLE, PICKLE) if name in files][:1]
        if not weights:
            raise SourceError(f"{self.model} has no weights there that qvl reads: neither safetensors nor {PICKLE}")
        small = [name for name in SMALL_FILES if name in files]
        return tuple(checked(files[name]) for name in (*small, *weights))


def check_name(path: str) -> None:
    """Raises SourceError for a name that would lead out of the folder it is put in."""
    parts = path.split("/")
    if not path or _ODD.search(path) or any(part in ("", ".", "..") for part in parts):
        raise SourceError(f"it lists a file {path[:80]!a}, which leads out of the model's folder; nothing was taken")


def checked(file: RemoteFile) -> RemoteFile:
    """The file, if what is said of it can be. Raises SourceError."""
    if file.size < 0 or (file.digest is not None and not file.digest.is_sound):
        raise SourceError(f"it states no usable size and digest of {file.path}")
    return file


def total(files: Iterable[RemoteFile]) -> int:
    return sum(file.size for file in files)
