"""Reading and writing the golden files; README.md says what is in them. NumPy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parent
MEDIA = GOLDEN / "media"
_SAMPLED_ROWS = 8


def load_case(name: str) -> dict[str, npt.NDArray[Any]]:
    """All arrays of one golden case, or of `sampling`; the keys are listed in README.md."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def save(name: str, arrays: dict[str, Any]) -> None:
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def load_lines() -> list[str]:
    """The lines of the tokenizer reference."""
    lines: list[str] = json.loads((GOLDEN / "multilingual.json").read_text(encoding="ascii"))
    return lines


def load_token_ids(vocabulary: str) -> list[list[int]]:
    """Ids of each line of `load_lines` under the "small" or the "real" vocabulary."""
    stored = load_case("tokens")
    ends = np.cumsum(stored[f"{vocabulary}_lengths"])
    return [part.tolist() for part in np.split(stored[f"{vocabulary}_ids"], ends[:-1])]


def load_fingerprints() -> dict[str, str]:
    """SHA-256 of the random weights behind the files, by checkpoint."""
    sums: dict[str, str] = json.loads((GOLDEN / "checkpoints.json").read_text(encoding="utf-8"))
    return sums


def sample_rows(name: str, rows: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """What is kept of a large [N, width] array: some rows whole, and two sums of every row.

    The second sum is weighted by 1, 2, 3, ... / width, so that a permuted row does not go unseen.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).round().astype(np.int64))
    return {
        f"{name}_shape": np.array(rows.shape),
        f"{name}_index": chosen,
        f"{name}_rows": rows[chosen],
        f"{name}_sums": row_sums(rows),
    }


def row_sums(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[N, 2]: the plain and the weighted sum of each row, added up in float64."""
    weights = np.arange(1, rows.shape[1] + 1) / rows.shape[1]
    wide = rows.astype(np.float64)
    return np.stack([wide.sum(axis=1), wide @ weights], axis=1).astype(np.float32)
