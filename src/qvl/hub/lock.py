"""Locks between processes that name their holder: the operating system frees them however a process ends.

One file beside each model folder. A process that loads the model shares it, one that puts the folder in place, repairs
or removes it has it alone; a second file is held by whoever downloads. What is in the files is for messages only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qvl.errors import DownloadError

_POLL = 0.1  # seconds
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

if sys.platform == "win32":
    import msvcrt

    # Whoever has it alone locks all these bytes, who shares it one of them. They lie far behind the text, since a
    # locked byte cannot be read there.
    _FIRST, _COUNT = 1 << 30, 64

    def _try_lock(handle: int, exclusive: bool) -> bool:
        _unlock(handle)
        first = _FIRST if exclusive else _FIRST + os.getpid() // 4 % _COUNT
        os.lseek(handle, first, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, _COUNT if exclusive else 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        for first, count in ((_FIRST, _COUNT), (_FIRST + os.getpid() // 4 % _COUNT, 1)):
            with contextlib.suppress(OSError):
                os.lseek(handle, first, os.SEEK_SET)
                msvcrt.locking(handle, msvcrt.LK_UNLCK, count)

else:
    import fcntl

    def _try_lock(handle: int, exclusive: bool) -> bool:
        """Take the lock, or turn one kind into the other. Raises OSError where the file system has none."""
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        return True


@dataclass(frozen=True)
class Holder:
    """A process that has, or shares, a lock. since: seconds since 1970."""

    pid: int
    host: str
    command: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command})"

    @property
    def may_live(self) -> bool:
        """False when it ran on this machine and is gone; its number may by now be another's."""
        if self.host != socket.gethostname():
            return True
        import psutil

        try:
            return bool(psutil.Process(self.pid).create_time() <= self.since + 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True


class BusyError(DownloadError):
    """Somebody else has the lock."""


class Lock:
    """A lock that is held until `release` or the end of the process."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        os.close(self._handle)


def read_lock(folder: Path) -> Path:
    """The file that whoever loads a model folder shares."""
    return folder.with_name(f".{folder.name}.lock")


def download_lock(folder: Path) -> Path:
    """The file that whoever downloads or repairs a model folder has alone."""
    return folder.with_name(f".{folder.name}.download.lock")


def holders(path: Path) -> tuple[Holder, ...]:
    """Who has or shares a lock, as far as they have said so and may still be running."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            data = json.loads(line)
            holder = Holder(int(data["pid"]), str(data["host"]), str(data["command"]), float(data["since"]))
        except (ValueError, KeyError, TypeError):
            continue
        if holder.may_live:
            found.append(holder)
    return tuple(dict.fromkeys(found))


def held_by(path: Path) -> str | None:
    """Who has a lock alone at the moment, in words; None when it is free. Takes nothing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _try_lock(handle, exclusive=False) else _names(path)
    except OSError:
        return None
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Have a lock alone. on_wait: called once with the holder's name when it has to be waited for.

    Raises BusyError, at once, when on_wait is None and somebody has it; DownloadError when it cannot be made.
    """
    lock = _acquire(path, exclusive=True, on_wait=on_wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps what is open
            path.unlink()  # whoever waits for it notices, and takes the next one of the name
        if lock is not None:
            lock.release()


def shared(path: Path, patience: float = 60.0) -> Lock | None:
    """Share a lock, waiting at most `patience` seconds for whoever has it alone. None where a lock cannot be made.

    Raises BusyError.
    """
    try:
        return _acquire(path, exclusive=False, on_wait=lambda _: None, deadline=time.monotonic() + patience)
    except BusyError:
        raise
    except DownloadError:
        return None  # a read-only folder: nobody can take the model away either


def _acquire(
    path: Path, *, exclusive: bool, on_wait: Callable[[str], None] | None, deadline: float | None = None
) -> Lock | None:
    told = False
    while True:
        handle = _open(path, exclusive)
        try:
            if _try(handle, path, exclusive):
                return Lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_LOCKS:
                warnings.warn(f"{path.parent}: its file system has no locks; run one qvl at a time", stacklevel=2)
                return None
            raise _cannot(path, error) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if on_wait is None or (deadline is not None and time.monotonic() > deadline):
            raise BusyError(_names(path))
        if not told:
            told = True
            on_wait(_names(path))
        time.sleep(_POLL)


def _open(path: Path, exclusive: bool) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        if not exclusive and error.errno in _READ_ONLY:
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY)
        raise _cannot(path, error) from None


def _try(handle: int, path: Path, exclusive: bool) -> bool:
    """Take the lock if it is free and still the one that others will find by its name."""
    alone = _try_lock(handle, exclusive=True)
    if not alone and (exclusive or not _try_lock(handle, exclusive=False)):
        return False
    try:
        if not os.path.samestat(os.fstat(handle), path.stat()):
            return False
    except FileNotFoundError:
        return False
    _write_name(handle, afresh=alone)
    # Turning it into a shared one lets it go for a moment, in which somebody else may take it.
    return exclusive or not alone or _try_lock(handle, exclusive=False)


def _write_name(handle: int, afresh: bool) -> None:
    """Say who has the lock; who has it alone knows that all earlier names are stale."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": command(), "since": time.time()}
    with contextlib.suppress(OSError):  # a read-only or full disk: the lock holds without a name
        if afresh:
            os.ftruncate(handle, 0)
        os.write(handle, (json.dumps(holder) + "\n").encode())


def command() -> str:
    """This process as a person would call it: the program and its arguments, shortened."""
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.name == "__main__.py" else program.name
    text = " ".join([{"cli": "qvl", "": "python"}.get(name, name), *sys.argv[1:]])
    return text if len(text) <= 80 else f"{text[:79]}…"


def _names(path: Path) -> str:
    return ", ".join(str(holder) for holder in holders(path)) or "another process"


def _cannot(path: Path, error: OSError) -> DownloadError:
    return DownloadError(f"{path.parent}: cannot be written ({error.strerror or error})")
