"""How many tokens a conversation takes, without the pixels of its pictures.

The arithmetic is that of the processor itself, through the same functions; only what is read differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvl.messages import Image, Message, Video
from qvl.processing.image import image_grid
from qvl.processing.processor import Processor
from qvl.processing.template import Slot, Words, render
from qvl.processing.video import video_grid


@dataclass(frozen=True)
class Measure:
    """tokens: the length of the prompt, vision included. supervised_tokens: those of them that training learns."""

    tokens: int
    supervised_tokens: int = 0


def measure(processor: Processor, messages: Sequence[Message], training: bool = True) -> Measure:
    """What `processor.example(messages)` (or, when not training, `processor.prompt`) will be long.

    Of a picture the header is read, of a clip the container and one frame. Raises MediaError and UsageError as the
    processor does, except for damage that only decoding shows.
    """
    tokens = supervised = 0
    for piece in render(messages, processor.layout, training=training):
        if isinstance(piece, Slot):
            tokens += _vision_tokens(processor, piece.part)
            continue
        count = len(processor.tokenizer.encode(piece.text)) if isinstance(piece, Words) else 1
        tokens += count
        supervised += count if piece.supervised else 0
    return Measure(tokens, supervised)


def _vision_tokens(processor: Processor, part: Image | Video) -> int:
    images = processor.image_options
    t, h, w = image_grid(part, images) if isinstance(part, Image) else video_grid(part, processor.video_options, images)
    return t * h * w // processor.config.vision_config.spatial_merge_size**2
