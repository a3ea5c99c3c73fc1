"""What the processor hands to the runtime: token ids, their positions, and the pixels behind the vision pads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import numpy as np
import numpy.typing as npt

from qvl.model.config import ModelConfig, VisionConfig

VisionKind = Literal["image", "video"]


@dataclass(frozen=True, eq=False)
class Vision:
    """One picture or clip, cut into patches.

    patches: float32 [t*h*w, channels*temporal_patch_size*patch_size**2], normalised, in 2x2-merge order.
    grid_thw: temporal slices, rows and columns of patches (not of tokens).
    size: (height, width) in pixels of the original as a viewer shows it; boxes are scaled to this.
    """

    kind: VisionKind
    patches: npt.NDArray[np.float32]
    grid_thw: tuple[int, int, int]
    size: tuple[int, int]

    def tokens(self, config: VisionConfig) -> int:
        """How many places this takes in the prompt: one per merged square of patches."""
        t, h, w = self.grid_thw
        return t * h * w // config.spatial_merge_size**2

    @cached_property
    def digest(self) -> bytes:
        """Of what the vision tower is given, and so equal for equal features: the patches and their grid."""
        hashed = blake2b(repr(self.grid_thw).encode(), digest_size=32)
        hashed.update(np.ascontiguousarray(self.patches).data)
        return hashed.digest()


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation ready for the model.

    input_ids: int64 [L].
    position_ids: int64 [3, L], the temporal, height and width axis of M-RoPE.
    next_position: where the first generated token sits on all three axes (maximum + 1).
    visions: in the order of their pad runs in `input_ids`.
    seconds: how long it took to read and lay out, when somebody took the time.
    """

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    next_position: int
    visions: tuple[Vision, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def vision_tokens(self, config: ModelConfig) -> int:
        """How many of its tokens are pictures and clips."""
        return sum(vision.tokens(config.vision_config) for vision in self.visions)

    def vision_starts(self, config: ModelConfig) -> tuple[int, ...]:
        """Where in `input_ids` each of `visions` begins; its tokens lie together."""
        pads = np.flatnonzero(np.isin(self.input_ids, (config.image_token_id, config.video_token_id)))
        counts = [vision.tokens(config.vision_config) for vision in self.visions]
        return tuple(int(pads[sum(counts[:number])]) for number in range(len(counts)))

    def without_patches(self) -> Prompt:
        """A copy that knows its pictures' grids and sizes but holds no pixels, for when it was run."""
        nothing = np.zeros((0, 0), np.float32)
        return replace(self, visions=tuple(replace(vision, patches=nothing) for vision in self.visions))

    @property
    def rope_delta(self) -> int:
        """Difference between the next position and the number of tokens, as the reference model names it."""
        return self.next_position - len(self)


@dataclass(frozen=True, eq=False)
class Example:
    """A whole conversation to learn from.

    labels: int64 [L], the token itself where it is supervised and -100 elsewhere; not shifted.
    """

    prompt: Prompt
    labels: npt.NDArray[np.int64]

    @property
    def supervised_tokens(self) -> int:
        return int(np.count_nonzero(self.labels >= 0))


def merge_index(input_ids: npt.NDArray[np.int64], config: ModelConfig) -> npt.NDArray[np.int64]:
    """Where each row of a prompt comes from, int64 [N]: itself, or N + j for the j-th vision feature."""
    is_vision = np.isin(input_ids, (config.image_token_id, config.video_token_id))
    rows = np.arange(len(input_ids), dtype=np.int64)
    rows[is_vision] = len(rows) + np.arange(np.count_nonzero(is_vision))
    return rows
