"""Paths as users write them, and the places that a command will write to."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from qvl.errors import DeviceError, UsageError

_PLOT_ENDINGS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def local(path: str | Path) -> Path:
    """The path with `~` for the home folder, which a shell leaves alone behind `--name=` and in quotes."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- Path.expanduser raises for an unknown ~user


def check_file(flag: str, path: Path) -> None:
    """Before anything takes its time: that the file can be written, proved by making it and taking it away again.

    What is there and no file, such as a pipe, is left alone. Raises UsageError.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{flag} {path}: is a folder")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
        target = path.resolve()  # what a link points to
        existed = target.exists()
        if existed and not target.is_file():
            return
        target.open("ab").close()
        if not existed:
            target.unlink()
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be written ({error.strerror or error})") from None


def check_plot(path: Path, made: Path | None = None) -> None:
    """As `check_file`, for --plot. made: a folder that will be there by then.

    Raises DeviceError without matplotlib, which is in an extra of its own.
    """
    if path.suffix.lower() not in _PLOT_ENDINGS:
        raise UsageError(f"--plot {path}: the name must end with one of {', '.join(_PLOT_ENDINGS)}")
    if made is None or path.absolute().parent != made.absolute():
        check_file("--plot", path)
    if find_spec("matplotlib") is None:
        raise DeviceError("--plot needs matplotlib: pip install 'qvl[plot]'")
