"""The heads by which a vision tower in training tells what it sees: see `tower.py`."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional

from examples.generator.tower import CHARACTERS, COLOUR_NAMES, KINDS, Batch

_GROUND = 0.25  # weight of a patch of ground: there is more of it than of all else
_FIRST_CHARACTER = KINDS.index(CHARACTERS[0])


class Telling(nn.Layer):
    """From the features of a tower to what it was shown. loudness: about their root mean square in the beginning."""

    def __init__(self, width: int, loudness: float) -> None:
        super().__init__()
        self.loudness = loudness
        self.patches = nn.Linear(width, 4 * (len(KINDS) + len(COLOUR_NAMES) + 4 + 2))  # of the four that a token has
        self.pieces = nn.Linear(width, len(KINDS) + 4)

    def forward(self, features: paddle.Tensor, shown: Batch) -> tuple[paddle.Tensor, tuple[float, float, float, float]]:
        """The loss; and as numbers the loss, right things and characters as shares, and how far edges of boxes are off.

        features: float32 [tokens, width].
        """
        features = features / self.loudness
        told = self.patches(features).reshape([len(shown.kinds), -1])
        kind, colour, edges, centres = paddle.split(told, [len(KINDS), len(COLOUR_NAMES), 4, 2], axis=1)
        weights = paddle.to_tensor(np.where(shown.kinds == 0, _GROUND, 1.0).astype(np.float32))
        of_kind = functional.cross_entropy(kind, paddle.to_tensor(shown.kinds), reduction="none").reshape([-1])
        of_colour = functional.cross_entropy(colour, paddle.to_tensor(shown.colours), reduction="none").reshape([-1])
        of_patches = ((of_kind + of_colour) * weights).sum() / weights.sum()
        mask = paddle.to_tensor(shown.has_edges)
        of_edges = ((edges - paddle.to_tensor(shown.edges)).abs() * mask).sum() / mask.sum() / 4
        of_centres = (centres - paddle.to_tensor(shown.centres)).abs().mean()
        named, boxes = paddle.split(self.pieces(paddle.to_tensor(shown.shares) @ features), [len(KINDS), 4], axis=1)
        of_boxes = (boxes - paddle.to_tensor(shown.boxes)).abs().mean()
        of_pieces = functional.cross_entropy(named, paddle.to_tensor(shown.pieces))
        loss = of_pieces + 0.5 * of_patches + 4 * (of_edges + of_centres + of_boxes)
        right = named.argmax(axis=1).numpy() == shown.pieces
        is_character = shown.pieces >= _FIRST_CHARACTER
        things, characters = right[~is_character].mean(), right[is_character].mean()
        return loss, (float(loss), float(things), float(characters), float(of_boxes))
