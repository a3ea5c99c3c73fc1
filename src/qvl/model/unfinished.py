"""A hidden folder beside the place of what is being made, so that the place is taken in one step or not at all.

Whoever makes it removes it when that fails. A process that was killed could not: what it left, which are gigabytes,
goes the next time the same thing is made.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import getpid
from pathlib import Path

import psutil


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, whose parent is there; removed at the end, if it has not been renamed by then.

    Only this user may look into it, as tempfile makes it. Raises OSError.
    """
    remove_left_over(target)
    made = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{getpid()}.", dir=target.parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _prefix(target: Path) -> str:
    """Up to the number of the process: it means something on this machine alone, and in a container within that."""
    try:
        numbers = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        numbers = 0
    here = hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]
    return f".{target.name}.{here}-"


def remove_left_over(target: Path) -> None:
    """What processes that are gone left of `target`, such as before the room on the disk is looked at.

    One whose number is another's by now is left.
    """
    named = re.compile(re.escape(_prefix(target)) + r"(\d+)\.[^.]+")
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            found = named.fullmatch(path.name)
            if found and not psutil.pid_exists(int(found[1])):
                shutil.rmtree(path, ignore_errors=True)
