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
_WORDS = sum(map(len, GROUPS))


class Telling(nn.Layer):
    """From the features of a tower to what it was shown. loudness: about their root mean square in the beginning."""

    def __init__(self, width: int, loudness: float) -> None:
        super().__init__()
        self.loudness = loudness
        self.patches = nn.Linear(width, 4 * (len(KINDS) + len(COLOUR_NAMES) + 4 + 2))  # of the four that a token has
        self.words = nn.Linear(width, _WORDS)
        self.places = nn.Linear(width, 4 * BINS + 4)

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
        pieces = paddle.to_tensor(shown.shares) @ features
        of_words, right = self._of_words(pieces, shown)
        bins, boxes = paddle.split(self.places(pieces), [4 * BINS, 4], axis=1)
        of_boxes = (boxes - paddle.to_tensor(shown.boxes)).abs().mean()
        wanted = np.clip(shown.boxes * BINS, 0, BINS - 1).astype(np.int64).reshape(-1)
        of_bins = functional.cross_entropy(bins.reshape([-1, BINS]), paddle.to_tensor(wanted))
        loss = of_words + 0.5 * of_patches + 0.25 * of_bins + 4 * (of_edges + of_centres + of_boxes)
        is_character = shown.words[:, 0] >= _FIRST_CHARACTER
        things, characters = right[~is_character].mean(), right[is_character].mean()
        return loss, (float(loss), float(things), float(characters), float(of_boxes))

    def _of_words(self, pieces: paddle.Tensor, shown: Batch) -> tuple[paddle.Tensor, npt.NDArray[np.bool_]]:
        """The loss of the words for each piece, and whether the first, its kind, is right, bool [pieces]."""
        loss = paddle.zeros([])
        right = np.zeros(len(shown.words), bool)
        groups = paddle.split(self.words(pieces), list(map(len, GROUPS)), axis=1)
        for number, (scores, weight) in enumerate(zip(groups, _WEIGHTS, strict=True)):
            # Against the score of saying none of them, which is no word's.
            scores = paddle.concat([paddle.zeros([len(shown.words), 1]), scores], axis=1)
            loss = loss + weight * functional.cross_entropy(scores, paddle.to_tensor(shown.words[:, number]))
            if number == 0:
                right = scores.argmax(axis=1).numpy() == shown.words[:, 0]
        return loss, right


def alignment(
    features: npt.NDArray[np.float64], told: npt.NDArray[np.float64], words: npt.NDArray[np.float64], loudness: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What features have to be multiplied by, [width, width], and what is then added, [width], to look like words.

    features: [tokens, width], some of them; told: [words, width], the directions in which they tell a word; words:
    [words, width], the rows that the language model has for these. Afterwards the product with the row of a word tells
    what the product with its direction told before, up to one factor. Nothing is lost: the rest of the features becomes
    what is at right angles to all words. Both parts then have the same root mean square, together `loudness`.
    """
    count = len(words)
    as_words = told.T @ np.linalg.pinv(words).T
    rest = np.linalg.svd(told)[2][count:].T @ np.linalg.svd(words)[2][count:]
    mean = features.mean(axis=0)
    parts = [(features - mean) @ part for part in (as_words, rest)]
    sizes = [np.sqrt(np.mean(np.square(part))) for part in parts]
    matrix = loudness / np.sqrt(2) * (as_words / sizes[0] + rest / sizes[1])
    return matrix, -mean @ matrix
