"""A conversation: messages, each a role and its parts (text, picture, clip).

This is the form that everything else takes: the command line and `--messages` JSON become these records, the
processor turns them into token ids. Nothing here opens a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qvl.errors import UsageError, suggest

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

# A path, an http(s) URL or a data: URI as text; or the thing itself: encoded bytes, a PIL image, uint8 [H, W, 3].
ImageSource: TypeAlias = "str | Path | bytes | PILImage.Image | np.ndarray[Any, Any]"
# A file as above, a folder of frames, or the frames themselves in order (an odd count repeats the last one).
VideoSource: TypeAlias = "str | Path | bytes | Sequence[ImageSource]"


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Image:
    """A picture. `None` leaves a limit to the profile; sizes are pixels after orientation is applied."""

    source: ImageSource
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True)
class Video:
    """A clip. `fps` and `nframes` exclude each other; `video_start` and `video_end` are seconds."""

    source: VideoSource
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    video_start: float | None = None
    video_end: float | None = None


Part: TypeAlias = Text | Image | Video

_NOT_RELATIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:|~", re.IGNORECASE)


def rooted(part: Part, root: Path) -> Part:
    """The part with relative paths starting from `root`; `-` is then a file of that name.

    What is absolute, a URL or the data themselves stays. Sources are text or paths, as they are in JSON.
    """
    if isinstance(part, Image):
        return replace(part, source=_rooted_path(part.source, root))
    if isinstance(part, Video):
        if isinstance(part.source, (list, tuple)):
            return replace(part, source=tuple(_rooted_path(frame, root) for frame in part.source))
        return replace(part, source=_rooted_path(part.source, root))
    return part


def _rooted_path(source: object, root: Path) -> str:
    text = str(source)
    if _NOT_RELATIVE.match(text):
        return text
    path = str(root / text)
    return path if path != "-" else f".{os.sep}-"  # alone it would be standard input


@dataclass(frozen=True)
class Message:
    """One turn. loss: whether training learns it; only means something for an assistant's turn.

    Raises UsageError for a role that is none of ROLES: in a prompt it would be a speaker whom no model knows.
    """

    role: Role
    parts: tuple[Part, ...]
    loss: bool = True

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            near = suggest(self.role, ROLES) if isinstance(self.role, str) else ""
            raise UsageError(f"unknown role {self.role!r}{near or '; expected ' + ', '.join(ROLES)}")

    @staticmethod
    def of(role: Role, *content: str | Part) -> Message:
        """Build a message; plain strings become `Text`."""
        return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in content))
