"""Pillow with manners: our size check for its own, no warnings, one kind of error, and what a header is worth."""

from __future__ import annotations

import importlib
import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import IO, Any

from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from qvl.errors import MediaError
from qvl.processing.naming import printable

# Above this a picture is refused unread: 1.2 GB as RGB. Phones make 200 megapixels.
MAX_IMAGE_PIXELS = 400_000_000
# All the frames of an animation together: a minute of work or so.
MAX_ANIMATION_PIXELS = 4_000_000_000
# Nothing else is opened, whatever a file is called: Pillow hands PostScript, for one, to an outside interpreter.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_PLUGINS = ("Jpeg", "Mpo", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif")
# Chunks of a PNG in which an orientation may hide.
_TELLING = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

# Pillow's limit and Python's warning filters belong to the whole process: the first of the threads that read at a time
# replaces them, the last one puts them back.
_pillow_lock = threading.Lock()
_readers = 0
_undo = ExitStack()
# Without a handler of its own Pillow's log lines would land on stderr; with one they still reach a configured logger.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with; no other plug-in is loaded."""
    for name in _PLUGINS:
        with suppress(ImportError):
            importlib.import_module(f"PIL.{name}ImagePlugin")
    return tuple(name for name in FORMATS if name in PILImage.OPEN)


def open_picture(file: Any) -> PILImage.Image:
    """PIL.Image.open for FORMATS alone. Errors are Pillow's own: call it under `reading`."""
    return PILImage.open(file, formats=_formats())


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Run Pillow with its size check replaced by ours, its warnings silent, and its many errors as one MediaError."""
    try:
        _enter_pillow()
        try:
            yield
        finally:
            _leave_pillow()
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{name}: not a picture, or not one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise MediaError(f"{name}: too large for the memory of this machine") from None
    except Exception as error:  # broken files reach Pillow's parsers as almost any type
        text = printable(" ".join(str(error).split())) or type(error).__name__
        raise MediaError(f"{name}: damaged or unreadable picture ({text})") from None


def _enter_pillow() -> None:
    global _readers
    with _pillow_lock:
        if not _readers:
            _undo.callback(setattr, PILImage, "MAX_IMAGE_PIXELS", PILImage.MAX_IMAGE_PIXELS)
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            PILImage.MAX_IMAGE_PIXELS = None
        _readers += 1


def _leave_pillow() -> None:
    global _readers
    with _pillow_lock:
        _readers -= 1
        if not _readers:
            _undo.close()


def check_size(image: PILImage.Image, name: str) -> None:
    """Refuse a picture by its header, before anything is decoded."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{name}: {image.width}x{image.height} pixels are over the limit of {MAX_IMAGE_PIXELS // 10**6} megapixels"
        )


def check_animation(image: PILImage.Image, frames: int, name: str) -> None:
    """Refuse an animation by its header when its frames are too much to decode."""
    if frames * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise MediaError(
            f"{name}: {frames} frames of {image.width}x{image.height} pixels are over the limit of "
            f"{MAX_ANIMATION_PIXELS // 10**6} megapixels for an animation"
        )


def header_suffices(image: PILImage.Image) -> bool:
    """Whether the header of an opened, not yet decoded file says all there is to know of the picture's size.

    It does for a whole JPEG, PNG or WebP, which is nearly every file. Other formats may change size while they are
    decoded, and a file that ends too early has to be decoded to know what is wrong with it.
    """
    check = {"JPEG": _whole_jpeg, "MPO": _whole_jpeg, "PNG": _plain_png, "WEBP": _whole_webp}.get(image.format or "")
    file: IO[bytes] | None = getattr(image, "fp", None)
    if check is None or file is None:
        return False
    place = file.tell()
    try:
        return check(file)
    finally:
        file.seek(place)


def _whole_jpeg(file: IO[bytes]) -> bool:
    file.seek(-2, os.SEEK_END)
    return file.read(2) == b"\xff\xd9"


def _whole_webp(file: IO[bytes]) -> bool:
    file.seek(4)
    size = int.from_bytes(file.read(4), "little") + 8
    return file.seek(0, os.SEEK_END) >= size


def _plain_png(file: IO[bytes]) -> bool:
    """Whether its last chunk is there and nothing after the pixels may turn the picture: Pillow has read up to them."""
    pixels = False
    at = 8
    end = file.seek(0, os.SEEK_END)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return False
        length, kind = struct.unpack(">I4s", head)
        at += length + 12
        if at > end:
            return False
        if kind == b"IEND":
            return True
        pixels = pixels or kind == b"IDAT"
        if pixels and kind in _TELLING:
            return False
