"""The heads by which a vision tower in training tells what it sees: see `tower.py`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn
from paddle.nn import functional

from examples.generator.tower import BINS, CHARACTERS, COLOUR_NAMES, GROUPS, KINDS, Batch

_GROUND = 0.25  # weight of a patch of ground: there is more of it than of all else
_WEIGHTS = (1.0, 0.5, 0.25, 0.25, 0.25)  # of the groups of words
_FIRST_CHARACTER = 1 + GROUPS[0].index(CHARACTERS[0])


class Telling(nn.Layer):
    """From the features of a tower to what it was shown.

    words: float32 [words, width], the rows that the language model has for them. What they have to do with features is
    measured as it will see them, at a root mean square of 1; the features learn, the rows do not.
    """

    def __init__(self, words: paddle.Tensor) -> None:
        super().__init__()
        width = words.shape[1]
        self.rows = (words / words.norm(axis=1, keepdim=True)).detach()
        self.patches = nn.Linear(width, 4 * (len(KINDS) + len(COLOUR_NAMES) + 4 + 2))  # of the four that a token has
        self.places = nn.Linear(width, 4 * BINS + 4)

    def forward(self, features: paddle.Tensor, shown: Batch) -> tuple[paddle.Tensor, tuple[float | None, ...]]:
        """The loss; and as numbers the loss, right things and characters as shares, None where there are
        none, and how far edges of boxes are off.

        features: float32 [tokens, width].
        """
        features = features * (features.square().mean(axis=1, keepdim=True) + 1e-6).rsqrt()
        told = self.patches(features).reshape([len(shown.kinds), -1])
        kind, colour, edges, centres = paddle.split(told, [len(KINDS), len(COLOUR_NAMES), 4, 2], axis=1)
        weights = paddle.to_tensor(np.where(shown.kinds == 0, _GROUND, 1.0).astype(np.float32))
        of_kind = functional.cross_entropy(kind, paddle.to_tensor(shown.kinds), reduction="none").reshape([-1])
        of_colour = functional.cross_entropy(colour, paddle.to_tensor(shown.colours), reduction="none").reshape([-1])
        of_patches = ((of_kind + of_colour) * weights).sum() / weights.sum()
        mask = paddle.to_tensor(shown.has_edges)
        of_edges = ((edges - paddle.to_tensor(shown.edges)).abs() * mask).sum() / mask.sum() / 4
        of_centres = (centres - paddle.to_tensor(shown.centres)).abs().mean()
        pieces = paddle.to_tensor(shown.shares) @ features
        of_words, right = self._of_words(pieces, shown)
        bins, boxes = paddle.split(self.places(pieces), [4 * BINS, 4], axis=1)
        of_boxes = (boxes - paddle.to_tensor(shown.boxes)).abs().mean()
        wanted = np.clip(np.rint(shown.boxes * BINS), 0, BINS - 1).astype(np.int64).reshape(-1)
        of_bins = functional.cross_entropy(bins.reshape([-1, BINS]), paddle.to_tensor(wanted))
        loss = of_words + 0.5 * of_patches + 0.25 * of_bins + 4 * (of_edges + of_centres + of_boxes)
        is_character = shown.words[:, 0] >= _FIRST_CHARACTER
        things, characters = (
            float(right[some].mean()) if some.any() else None for some in (~is_character, is_character)
        )
        return loss, (float(loss), things, characters, float(of_boxes))

    def _of_words(self, pieces: paddle.Tensor, shown: Batch) -> tuple[paddle.Tensor, npt.NDArray[np.bool_]]:
        """The loss of the words for each piece, and whether the first, its kind, is right, bool [pieces]."""
        loss = paddle.zeros([])
        right = np.zeros(len(shown.words), bool)
        groups = paddle.split(pieces @ self.rows.T, list(map(len, GROUPS)), axis=1)
        for number, (scores, weight) in enumerate(zip(groups, _WEIGHTS, strict=True)):
            # Against the score of saying none of them, which is no word's.
            scores = paddle.concat([paddle.zeros([len(shown.words), 1]), scores], axis=1)
            loss = loss + weight * functional.cross_entropy(scores, paddle.to_tensor(shown.words[:, number]))
            if number == 0:
                right = scores.argmax(axis=1).numpy() == shown.words[:, 0]
        return loss, right
