"""M-RoPE: where each token sits on the temporal, height and width axis.

Positions belong to the prompt, not to the model: they are worked out once, from what the prompt is made of, and no
search for pad tokens is needed. Checked against `get_rope_index` of transformers 4.49.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mrope_positions(
    runs: Sequence[int | tuple[int, int, int]], spatial_merge_size: int = 2
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions of a prompt made of runs of text and vision.

    runs: in order, a number of text tokens or the grid_thw (in patches) of a picture or clip.
    Returns int64 [3, L] and the position of the token that comes next, one more than the largest so far: a picture
    advances it by its longer side only, which is why it can be far less than L.
    """
    blocks: list[npt.NDArray[np.int64]] = []
    start = 0
    for run in runs:
        if isinstance(run, int):
            block = np.broadcast_to(np.arange(run, dtype=np.int64), (3, run))
            extent = run
        else:
            t, h, w = run[0], run[1] // spatial_merge_size, run[2] // spatial_merge_size
            block = np.indices((t, h, w), dtype=np.int64).reshape(3, -1)
            extent = max(t, h, w)
        blocks.append(block + start)
        start += extent
    if not blocks:
        return np.zeros((3, 0), np.int64), 0
    return np.concatenate(blocks, axis=1), start
