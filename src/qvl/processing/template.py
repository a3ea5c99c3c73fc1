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
class Words:
    """Plain text. supervised: part of a reply that training learns."""

    text: str
    supervised: bool = False


@dataclass(frozen=True)
class Special:
    """A special token, by its text."""

    token: str
    supervised: bool = False


@dataclass(frozen=True)
class Slot:
    """Where a picture or clip goes: as many pads as it has tokens."""

    part: Image | Video


Piece = Words | Special | Slot


@dataclass(frozen=True)
class Layout:
    """How conversations are laid out.

    template: "chat" is that of the published models; "none" is the bare content in order, for base models.
    system: takes the place of the default system turn; not used when the first message is a system one.
    add_vision_id: write "Picture 1: " or "Video 1: " before each, counted through the conversation.
    """

    template: Template = "chat"
    system: str | None = None
    add_vision_id: bool = False


def render(messages: Sequence[Message], layout: Layout, *, training: bool = False) -> list[Piece]:
    """Lay a conversation out as pieces; neighbouring text is joined, since it is tokenised as one.

    training: the conversation is whole and its replies are marked as supervised, each with the token that closes it;
    otherwise the turn of the next reply is opened. A supervised reply is not joined to the words before it: generation
    starts there too, so its tokens are those that the model will have to give.
    """
    chat = layout.template == "chat"
    if chat and (not messages or messages[0].role != "system"):
        system = DEFAULT_SYSTEM if layout.system is None else layout.system
        messages = [Message.of("system", system), *messages]
    counts = {"Picture": 0, "Video": 0}
    pieces: list[Piece] = []
    for message in messages:
        supervised = training and message.role == "assistant" and message.loss
        content = [
            piece
            for part in message.parts
            for piece in (*_vision_id(part, counts, layout), *_part(part, message, supervised))
        ]
        if chat:
            opening = (Special(IM_START), Words(f"{message.role}\n"))
            pieces += [*opening, *content, Special(IM_END, supervised), Words("\n")]
        else:
            pieces += content
    if chat and not training:
        pieces += [Special(IM_START), Words("assistant\n")]
    return _join(pieces)


def _vision_id(part: Part, counts: dict[str, int], layout: Layout) -> Iterator[Piece]:
    if layout.add_vision_id and not isinstance(part, Text):
        kind = "Picture" if isinstance(part, Image) else "Video"
        counts[kind] += 1
        yield Words(f"{kind} {counts[kind]}: ")


def _part(part: Part, message: Message, supervised: bool) -> Iterator[Piece]:
    if not isinstance(part, Text):
        yield from (Special(VISION_START), Slot(part), Special(VISION_END))
    elif message.role == "assistant":
        # An answer given back as history, or a training target, has its boxes marked; nobody types these.
        for text in _MARKS.split(part.text):
            yield Special(text, supervised) if text in GROUNDING_MARKS else Words(text, supervised)
    else:
        yield Words(part.text)


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Words) and isinstance(last, Words) and piece.supervised == last.supervised:
            joined[-1] = Words(last.text + piece.text, piece.supervised)
        elif not isinstance(piece, Words) or piece.text:
            joined.append(piece)
    return joined
