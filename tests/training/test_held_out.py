"""Samples that a run is judged by are none that it learns from."""

from __future__ import annotations

import numpy as np
import pytest

from qvl.training.held_out import hold_out


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_a_sample_is_held_out_with_all_its_repeats(repeats: int) -> None:
    keys = [(part, index) for part in range(2) for _ in range(repeats) for index in range(10)]
    held_out, trained = hold_out(keys, 0.25, seed=3)
    judged = [keys[position] for position in held_out]
    assert len(judged) == len(set(judged)) == 5
    assert not set(judged) & {keys[position] for position in trained}
    assert len(trained) == 15 * repeats and trained.tolist() == sorted(trained)
    again, _ = hold_out(keys, 0.25, seed=3)
    other, _ = hold_out(keys, 0.25, seed=4)
    assert held_out.tolist() == again.tolist() != other.tolist()


def test_which_are_held_out_does_not_depend_on_repeats() -> None:
    keys = [(0, index) for index in range(20)]
    once, twice = hold_out(keys, 0.3, 0)[0], hold_out(keys + keys, 0.3, 0)[0]
    assert once.tolist() == twice.tolist()


@pytest.mark.parametrize(("count", "share", "expected"), [(4, 0.1, 1), (2, 0.01, 1), (4, 0.0, 0), (1, 0.5, 0)])
def test_a_small_share_is_one_sample_at_least(count: int, share: float, expected: int) -> None:
    held_out, trained = hold_out([(0, index) for index in range(count)], share, 0)
    assert (len(held_out), len(trained)) == (expected, count - expected)
    assert held_out.dtype == trained.dtype == np.int64
