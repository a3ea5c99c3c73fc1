"""The chat template: messages to a row of text, special tokens and places for pictures.

Kept apart from the tokenizer so that what a user typed can never turn into a special token: a special token is its own
kind of piece here, not a string inside a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qvl.messages import Image, Message, Part, Text, Video

Template = Literal["chat", "none"]
DEFAULT_SYSTEM = "You are a helpful assistant."

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
GROUNDING_MARKS = (
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
)
_MARKS = re.compile("(" + "|".join(map(re.escape, GROUNDING_MARKS)) + ")")


@dataclass(frozen=True)
class Special:
    """A special token, by its text."""

    token: str


@dataclass(frozen=True)
class Slot:
    """Where a picture or clip goes: as many pads as it has tokens."""

    part: Image | Video


Piece = str | Special | Slot


def render(
    messages: Sequence[Message],
    *,
    template: Template = "chat",
    system: str | None = None,
    add_vision_id: bool = False,
    add_generation_prompt: bool = True,
) -> list[Piece]:
    """Lay a conversation out as pieces; neighbouring strings are joined, since they are tokenised as one.

    template: "chat" is that of the published models; "none" is the bare content in order, for base models.
    system: takes the place of the default system turn; not used when the first message is a system one.
    add_vision_id: write "Picture 1: " or "Video 1: " before each, counted through the conversation.
    """
    counts = {"Picture": 0, "Video": 0}

    def content(message: Message) -> Iterator[Piece]:
        for part in message.parts:
            if add_vision_id and not isinstance(part, Text):
                kind = "Picture" if isinstance(part, Image) else "Video"
                counts[kind] += 1
                yield f"{kind} {counts[kind]}: "
            yield from _part(part, message)

    pieces: list[Piece] = []
    if template == "chat" and (not messages or messages[0].role != "system"):
        messages = [Message.of("system", DEFAULT_SYSTEM if system is None else system), *messages]
    for message in messages:
        if template == "chat":
            pieces += [Special(IM_START), f"{message.role}\n", *content(message), Special(IM_END), "\n"]
        else:
            pieces += content(message)
    if template == "chat" and add_generation_prompt:
        pieces += [Special(IM_START), "assistant\n"]
    return _join(pieces)


def _part(part: Part, message: Message) -> Iterator[Piece]:
    if not isinstance(part, Text):
        yield from (Special(VISION_START), Slot(part), Special(VISION_END))
    elif message.role == "assistant":
        # An answer given back as history, or a training target, has its boxes marked; nobody types these.
        yield from (Special(text) if text in GROUNDING_MARKS else text for text in _MARKS.split(part.text))
    else:
        yield part.text


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return joined
