"""Messages to a `Prompt`: the one road that inference, chat and training all take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qvl.messages import Image, Message, Video
from qvl.model.config import ModelConfig
from qvl.processing import template
from qvl.processing.image import ImageOptions, image_vision
from qvl.processing.positions import mrope_positions
from qvl.processing.prompt import Prompt, Vision
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoOptions, video_vision


@dataclass(frozen=True)
class Processor:
    """How one checkpoint, under one profile, reads a conversation. Holds no conversation itself."""

    config: ModelConfig
    tokenizer: Tokenizer
    image_options: ImageOptions = field(default_factory=ImageOptions)
    video_options: VideoOptions = field(default_factory=VideoOptions)
    template: template.Template = "chat"
    system: str | None = None
    add_vision_id: bool = False

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        """Read every picture and clip and lay out the prompt. Raises MediaError and UsageError."""
        pieces = template.render(
            messages,
            template=self.template,
            system=self.system,
            add_vision_id=self.add_vision_id,
            add_generation_prompt=add_generation_prompt,
        )
        ids: list[int] = []
        runs: list[int | tuple[int, int, int]] = []
        visions: list[Vision] = []
        for piece in pieces:
            if isinstance(piece, template.Slot):
                vision = self.vision(piece.part)
                tokens = vision.tokens(self.config.vision_config)
                ids += [self._pad_id(vision)] * tokens
                runs.append(vision.grid_thw)
                visions.append(vision)
                continue
            if isinstance(piece, template.Special):
                new = [self.tokenizer.special_id(piece.token)]
            else:
                new = self.tokenizer.encode(piece)
            ids += new
            runs.append(len(new))
        positions, next_position = mrope_positions(runs, self.config.vision_config.spatial_merge_size)
        return Prompt(np.asarray(ids, np.int64), positions, next_position, tuple(visions))

    def vision(self, part: Image | Video) -> Vision:
        """Read one picture or clip and cut it into patches."""
        if isinstance(part, Image):
            return image_vision(part, self.image_options)
        return video_vision(part, self.video_options, self.image_options)

    def _pad_id(self, vision: Vision) -> int:
        return self.config.image_token_id if vision.kind == "image" else self.config.video_token_id
