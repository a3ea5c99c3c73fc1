"""Grounding on the command line: which picture the boxes of an answer belong to, and the file they are drawn into."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.paths import check_file, local
from qvl.errors import QvlError, UsageError
from qvl.grounding import Box, draw_boxes, parse_boxes
from qvl.messages import Image, Message

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from qvl.processing.prompt import Prompt

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class _Place:
    """Where a picture stands: which message and part, and which of the conversation's pictures (from 0)."""

    message: int
    part: int
    picture: int


@dataclass(frozen=True)
class Target:
    """A file to draw into and the picture to draw on."""

    path: Path
    picture: PILImage.Image
    asked_by: str = "--boxes"

    def write(self, boxes: Sequence[Box]) -> None:
        """Draw boxes that are in the picture's pixels and write the file, also when there are none."""
        try:
            draw_boxes(self.picture, boxes).save(self.path)
        except (OSError, ValueError) as error:  # the latter for a picture too large for its format
            reason = getattr(error, "strerror", None) or error
            raise QvlError(f"{self.asked_by} {self.path}: cannot be written ({reason})") from None


def prepare(
    out: str, messages: tuple[Message, ...], raw_pixels: bool, asked_by: str = "--boxes"
) -> tuple[tuple[Message, ...], Target]:
    """Check `out`, read the picture once, and put it in its place in the messages, so that both are the same pixels.

    asked_by: the option or command that errors name.

    Raises UsageError for a file that cannot be written or a conversation without a picture; MediaError.
    """
    from qvl.processing.image import load_image

    path = _checked(out, asked_by)
    place = _relevant(messages)
    if place is None:
        raise UsageError(f"{asked_by} draws on a picture, and there is none")
    message = messages[place.message]
    part = message.parts[place.part]
    assert isinstance(part, Image)
    picture = load_image(part.source, raw_pixels=raw_pixels)
    replaced = list(message.parts)
    replaced[place.part] = dataclasses.replace(part, source=picture)
    changed = list(messages)
    changed[place.message] = Message(message.role, tuple(replaced))
    return tuple(changed), Target(path, picture, asked_by)


def located(marked_text: str, messages: Sequence[Message], prompt: Prompt) -> tuple[list[Box], int | None]:
    """The boxes of an answer in pixels, and the picture they are on: None for boxes on a clip, or for none at all.

    The model does not say which picture it means: it is the first of the last turn that brought any; without a
    picture, the last clip.
    """
    boxes = parse_boxes(marked_text)
    place = _relevant(messages)
    kind = "video" if place is None else "image"
    sizes = [vision.size for vision in prompt.visions if vision.kind == kind]
    if not boxes or not sizes:
        return [], None
    size = sizes[-1 if place is None else place.picture]
    return [box.to_pixels(size) for box in boxes], None if place is None else place.picture


def as_json(boxes: Sequence[Box], picture: int | None) -> list[dict[str, Any]]:
    """label, box [x1, y1, x2, y2] and picture; for a quad its four points as well."""
    return [
        {
            "label": box.label,
            "box": list(box.bounds),
            **({"quad": [list(point) for point in box.points]} if len(box.points) == 4 else {}),
            "picture": picture,
        }
        for box in boxes
    ]


def _relevant(messages: Sequence[Message]) -> _Place | None:
    place, pictures = None, 0
    for index, message in enumerate(messages):
        found = [position for position, part in enumerate(message.parts) if isinstance(part, Image)]
        if found:
            place = _Place(index, found[0], pictures)
        pictures += len(found)
    return place


def _checked(out: str, asked_by: str) -> Path:
    """The path of a picture that can be written. Raises UsageError."""
    path = local(out)
    if path.suffix.lower() not in _writable_endings() and not path.is_dir():
        raise UsageError(f"{asked_by} {path}: must end in one of {', '.join(_writable_endings())}")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise UsageError(f"{asked_by} {path}: is not a file")
    check_file(asked_by, path)
    return path


def _writable_endings() -> tuple[str, ...]:
    """Endings of the formats that hold one picture in RGB, less those that this Pillow was built without."""
    from PIL import Image as PILImage

    formats = PILImage.registered_extensions()
    return tuple(ending for ending in _ENDINGS if formats.get(ending) in PILImage.SAVE)
