"""The pictures of a folder or of a glob pattern, in the order a person would put them: frame2 before frame10."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from qvl.errors import MediaError
from qvl.processing.media import describe, exists, is_url, local_path, reason

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def frame_files(source: str | Path | bytes) -> list[Path] | None:
    """The picture files of a folder or a glob pattern, in natural order; hidden files are left out.

    None when the source is neither. Raises MediaError when there is no picture in it.
    """
    if isinstance(source, bytes) or is_url(str(source)) or str(source)[:5].lower() == "data:":
        return None
    path = local_path(source)
    try:
        if exists(path):
            if not path.is_dir():
                return None
            found = list(path.iterdir())
        elif glob.has_magic(str(path)):
            found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - it may be absolute
        else:
            return None
    except (OSError, ValueError) as error:
        raise MediaError(f"{describe(source)}: cannot be read ({reason(error)})") from None
    files = [file for file in found if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise MediaError(f"{describe(source)}: no picture files there, so there are no frames")
    return sorted(files, key=natural_order)


def natural_order(path: str | Path) -> tuple[tuple[str | int, ...], str]:
    """A key for `sorted`. Splitting at runs of digits puts text and numbers at alternate places, never compared."""
    parts = re.split(r"([0-9]+)", str(path).casefold())
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), str(path)
