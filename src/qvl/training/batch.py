"""Samples laid end to end as the model takes them: no padding, no sample sees another. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qvl.model.config import ModelConfig
from qvl.processing.processor import IGNORED
from qvl.processing.prompt import Example, merge_index

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """One or more conversations, N tokens in all, of which K are predicted.

    input_ids: [N]. position_ids: [3, N]. lengths: tokens of each conversation. patches: float32 [P, 1176] of all
    pictures and clips, with their grids; merge_index: [N], see ModelInputs. target_index: [K], the rows whose next
    token is learnt; targets: [K], those tokens. normaliser: what the sum of token losses is divided by.
    """

    input_ids: Int
    position_ids: Int
    lengths: tuple[int, ...]
    patches: npt.NDArray[np.float32] | None
    grids: tuple[tuple[int, int, int], ...]
    merge_index: Int | None
    target_index: Int
    targets: Int
    normaliser: float


def collate(examples: Sequence[Example], config: ModelConfig, normaliser: float) -> Batch:
    """Lay examples end to end."""
    ids = np.concatenate([example.prompt.input_ids for example in examples])
    labels = np.concatenate([_next_tokens(example.labels) for example in examples])
    visions = [vision for example in examples for vision in example.prompt.visions]
    target_index = np.flatnonzero(labels != IGNORED)
    return Batch(
        input_ids=ids,
        position_ids=np.concatenate([example.prompt.position_ids for example in examples], axis=1),
        lengths=tuple(len(example.prompt) for example in examples),
        patches=np.concatenate([vision.patches for vision in visions]) if visions else None,
        grids=tuple(vision.grid_thw for vision in visions),
        merge_index=merge_index(ids, config) if visions else None,
        target_index=target_index,
        targets=labels[target_index],
        normaliser=normaliser,
    )


def _next_tokens(labels: Int) -> Int:
    """Labels moved to the row that predicts them; the last row of a conversation predicts nothing."""
    return np.concatenate([labels[1:], np.asarray([IGNORED])])
