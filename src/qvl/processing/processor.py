"""Messages to a `Prompt`: the one road that inference, chat and training all take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qvl.messages import Image, Message, Video
from qvl.model.config import ModelConfig
from qvl.processing.image import ImageOptions, image_vision
from qvl.processing.positions import mrope_positions
from qvl.processing.prompt import Example, Prompt, Vision
from qvl.processing.template import Layout, Piece, Slot, Special, Words, render
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoOptions, video_vision

# The label of a token that training does not learn, as PyTorch and Paddle both take it.
IGNORED = -100


@dataclass(frozen=True)
class Processor:
    """How one checkpoint, under one profile, reads a conversation. Holds no conversation itself."""

    config: ModelConfig
    tokenizer: Tokenizer
    image_options: ImageOptions = field(default_factory=ImageOptions)
    video_options: VideoOptions = field(default_factory=VideoOptions)
    layout: Layout = field(default_factory=Layout)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Read every picture and clip and lay out the prompt of the next reply. Raises MediaError and UsageError."""
        return self._lay_out(render(messages, self.layout))[0]

    def example(self, messages: Sequence[Message]) -> Example:
        """Read a whole conversation for training: the same ids and positions, and which of them are to be learnt."""
        prompt, supervised = self._lay_out(render(messages, self.layout, training=True))
        return Example(prompt, np.where(supervised, prompt.input_ids, IGNORED))

    def vision(self, part: Image | Video) -> Vision:
        """Read one picture or clip and cut it into patches."""
        if isinstance(part, Image):
            return image_vision(part, self.image_options)
        return video_vision(part, self.video_options, self.image_options)

    def _lay_out(self, pieces: Sequence[Piece]) -> tuple[Prompt, npt.NDArray[np.bool_]]:
        """The prompt, and for each of its tokens whether it is supervised."""
        ids: list[int] = []
        supervised: list[bool] = []
        runs: list[int | tuple[int, int, int]] = []
        visions: list[Vision] = []
        for piece in pieces:
            if isinstance(piece, Slot):
                vision = self.vision(piece.part)
                new = [self._pad_id(vision)] * vision.tokens(self.config.vision_config)
                visions.append(vision)
                runs.append(vision.grid_thw)
            else:
                new = self._encode(piece)
                runs.append(len(new))
            ids += new
            supervised += [not isinstance(piece, Slot) and piece.supervised] * len(new)
        positions, next_position = mrope_positions(runs, self.config.vision_config.spatial_merge_size)
        prompt = Prompt(np.asarray(ids, np.int64), positions, next_position, tuple(visions))
        return prompt, np.asarray(supervised, np.bool_)

    def _encode(self, piece: Words | Special) -> list[int]:
        if isinstance(piece, Special):
            return [self.tokenizer.special_id(piece.token)]
        return self.tokenizer.encode(piece.text)

    def _pad_id(self, vision: Vision) -> int:
        return self.config.image_token_id if vision.kind == "image" else self.config.video_token_id
