"""The picture in the clipboard, by whatever the platform has for that."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from qvl.errors import MediaError, UsageError

_SECONDS = 10
_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/tiff", "image/gif")
_NONE = "/paste: the clipboard holds no picture"


def picture() -> bytes:
    """The picture, encoded. Raises UsageError when there is no clipboard here, MediaError when it has no picture."""
    if sys.platform == "darwin" and shutil.which("pngpaste"):
        return _some(_run("pngpaste", "-"))
    if sys.platform in ("darwin", "win32"):
        return _grabbed()
    if os.environ.get("WAYLAND_DISPLAY") and shutil.which("wl-paste"):
        return _offered(("wl-paste", "--list-types"), lambda kind: ("wl-paste", "--no-newline", "--type", kind))
    if os.environ.get("DISPLAY") and shutil.which("xclip"):
        select = ("xclip", "-selection", "clipboard", "-o", "-t")
        return _offered((*select, "TARGETS"), lambda kind: (*select, kind))
    if os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"):
        tool = "wl-paste (package wl-clipboard)" if os.environ.get("WAYLAND_DISPLAY") else "xclip"
        raise UsageError(f"/paste: needs {tool}, which is not installed; /image takes a file")
    raise UsageError("/paste: there is no clipboard here (no display); /image takes a file")


def _offered(list_types: tuple[str, ...], read: Callable[[str], tuple[str, ...]]) -> bytes:
    offered = _run(*list_types).decode(errors="replace").split()
    kind = next((kind for kind in _TYPES if kind in offered), None)
    if kind is None:
        raise MediaError(_NONE)
    return _some(_run(*read(kind)))


def _run(*command: str) -> bytes:
    """What a program prints; nothing when it fails, as these do when the clipboard is empty."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MediaError(f"/paste: {command[0]} did not answer within {_SECONDS} s") from None
    except OSError as error:
        raise MediaError(f"/paste: {command[0]} cannot be run ({error.strerror or error})") from None
    return done.stdout if done.returncode == 0 else b""


def _grabbed() -> bytes:
    from PIL import ImageGrab

    from qvl.processing.media import PICTURE_BYTES, read_source

    try:
        grabbed = ImageGrab.grabclipboard()
    except (OSError, NotImplementedError, ValueError) as error:
        raise MediaError(f"/paste: the clipboard cannot be read ({error})") from None
    if isinstance(grabbed, list):  # files that were copied: as they are, and refused as such if they are no pictures
        name = next((name for name in grabbed if os.path.isfile(name)), None)  # noqa: PTH113
        return _some(b"" if name is None else read_source(name, max_bytes=PICTURE_BYTES))
    if grabbed is None:
        raise MediaError(_NONE)
    buffer = io.BytesIO()
    grabbed.save(buffer, "PNG")
    return buffer.getvalue()


def _some(data: bytes) -> bytes:
    if not data:
        raise MediaError(_NONE)
    return data
