"""One run in an output folder at a time: a second would remove what the first is writing, as left by a killed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qvl.errors import CheckpointError, DownloadError, UsageError
from qvl.hub.lock import BusyError, exclusive, held_by

_LOCK = ".run.lock"


def refuse_taken(output: Path) -> None:
    """Raise UsageError, which says who, when a run is at work in a folder. Takes nothing, and so may come early."""
    holder = held_by(output / _LOCK)
    if holder is not None:
        raise _taken(output, holder)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Have an output folder for one run, until the block ends or the process does.

    Only one process of a run may ask. A file system without locks is warned of. Raises UsageError, which says who has
    the folder, and CheckpointError when it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(output / _LOCK))
        except BusyError as error:
            raise _taken(output, str(error)) from None
        except DownloadError as error:  # the lock's, which those who download were the first to need
            raise CheckpointError(str(error)) from None
        yield


def _taken(output: Path, holder: str) -> UsageError:
    return UsageError(f"{output}: {holder} is training there; wait for it, or choose another --output")
