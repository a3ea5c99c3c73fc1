"""The digests by which sources state what is in a file, and how they are worked out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_BLOCK = 4 * 1024 * 1024
_DIGITS = {"sha256": 64, "git-sha1": 40, "md5": 32}


@dataclass(frozen=True)
class Digest:
    """What a source says of a file's content, in hexadecimal.

    kind: "sha256"; "git-sha1", of git's blob, which is a header with the size before the content; or "md5".
    """

    kind: Literal["sha256", "git-sha1", "md5"]
    value: str

    @property
    def is_sound(self) -> bool:
        """Whether it looks like a digest of its kind: what a source states is not to be trusted with file names."""
        return len(self.value) == _DIGITS[self.kind] and set(self.value) <= set("0123456789abcdef")


class Hasher:
    """Works out a file's sha256 and, where the source states another digest, that too, in one pass."""

    def __init__(self, size: int, digest: Digest | None) -> None:
        self._sha256 = hashlib.sha256()
        self._stated = digest
        self._other: Any = None
        if digest is not None and digest.kind == "git-sha1":
            self._other = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        elif digest is not None and digest.kind == "md5":
            self._other = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._other is not None:
            self._other.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def agrees(self) -> bool:
        """Whether what was read is what the source stated; True when it stated nothing."""
        if self._stated is None:
            return True
        found = self._sha256 if self._other is None else self._other
        return bool(found.hexdigest() == self._stated.value)


def hash_file(
    path: Path, digest: Digest | None = None, on_bytes: Callable[[int], None] | None = None, length: int | None = None
) -> Hasher:
    """Hash a file, or its first `length` bytes. on_bytes: called with the bytes of each block.

    Raises OSError.
    """
    size = path.stat().st_size
    hasher, left = Hasher(size, digest), size if length is None else length
    with path.open("rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            hasher.update(block)
            left -= len(block)
            if on_bytes is not None:
                on_bytes(len(block))
    return hasher
