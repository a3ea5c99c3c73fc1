"""Sizes, and the resize of clips against numbers that torch made (tests/golden/make_resize.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.errors import MediaError, UsageError
from qvl.processing import resize
from qvl.processing.resize import fit_frame, merge_limits, resize_frame, resize_frames, smart_resize, target_sizes
from tests.unit.media_fixtures import noise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "resize.npz")
CASES = [name[3:] for name in GOLDEN.files if name.startswith("in_")]
MODEL = {"min_pixels": 3136, "max_pixels": 12845056}


@pytest.mark.parametrize("case", CASES)
def test_resize_is_torchs(case: str) -> None:
    expected = GOLDEN[f"out_{case}"]
    result = resize_frames(GOLDEN[f"in_{case}"], *expected.shape[1:3])
    assert result.dtype == np.uint8
    difference = np.abs(result.astype(int) - expected)
    # One number of one case is on the other side of a tie: torch does not add everywhere as it does nearly everywhere.
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= (case == "3_100_28_84")


def test_every_frame_is_resized_by_itself() -> None:
    frames = np.stack([noise(40, 50, seed) for seed in range(3)])
    together = resize_frames(frames, 28, 56)
    for frame, resized in zip(frames, together, strict=True):
        assert np.array_equal(resize_frames(frame[None], 28, 56)[0], resized)


def test_flat_frames_stay_flat_and_equal_sizes_are_not_touched() -> None:
    assert (resize_frames(np.full((1, 37, 91, 3), 200, np.uint8), 84, 56) == 200).all()
    frames = noise(28, 56)[None]
    assert resize_frames(frames, 28, 56) is frames


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1365, 2048, (1372, 2044)),
        (70, 700, (56, 700)),  # 2.5 rounds to even
        (98, 98, (112, 112)),  # 3.5 too
        (1, 1, (56, 56)),
        (28, 28, (56, 56)),
        (28, 5600, (28, 5600)),
        (8000, 8000, (3584, 3584)),
        (1, 200, (28, 196)),
    ],
)
def test_smart_resize(height: int, width: int, expected: tuple[int, int]) -> None:
    assert smart_resize(height, width, **MODEL) == expected


def test_smart_resize_keeps_a_side_of_one_square_when_it_shrinks() -> None:
    assert smart_resize(30, 5000, min_pixels=784, max_pixels=784 * 4) == (28, 700)


def test_smart_resize_refuses() -> None:
    assert smart_resize(10, 2000, **MODEL) == (28, 1988)
    with pytest.raises(MediaError, match="2001x10 is too long and narrow"):
        smart_resize(10, 2001, **MODEL)


def test_wished_size_wins_over_limits_but_not_over_the_model() -> None:
    assert target_sizes((1000, 1000), (3136, 10_000), (300, 400), 28) == [(308, 392)]
    assert target_sizes((1000, 1000), (3136, 10_000), (28, 28), 28) == [(56, 56)]
    assert target_sizes((10, 10), (3136, 10_000), (3584, 3584), 28) == [(3584, 3584)]
    assert target_sizes((30, 30), (100, 10_000), (None, None), 28) == [(28, 28), (56, 56)]
    with pytest.raises(UsageError, match="given together"):
        target_sizes((100, 100), (3136, 10_000), (280, None), 28)


def test_limits_of_a_message_win() -> None:
    assert merge_limits((None, None), (10, 20)) == (10, 20)
    assert merge_limits((30, None), (10, 20)) == (30, 30)
    assert merge_limits((None, 15), (10, 20)) == (10, 15)
    assert merge_limits((1, 5), (10, 20)) == (1, 5)
    for wished in ((6, 5), (0, 5), (None, 0), (-1, None)):
        with pytest.raises(UsageError, match="pixels"):
            merge_limits(wished, (10, 20))


def test_a_max_below_the_standard_min_bounds_only_what_is_larger() -> None:
    limits = merge_limits((None, 25_088), (100_352, 602_112))
    assert target_sizes((1000, 1000), limits, (None, None), 28) == [(140, 140)]
    assert target_sizes((96, 128), limits, (None, None), 28) == [(280, 392)]


def test_a_second_step_is_pillows() -> None:
    frame = fit_frame(noise(30, 30), [(28, 28), (56, 56)])
    assert frame.shape == (56, 56, 3)


def test_a_size_beyond_the_model_is_refused_before_anything_is_resized() -> None:
    message = r"10000000000 pixels \(12755102 tokens\); a picture or frame has at most 12845056 \(16384 tokens\)"
    with pytest.raises(UsageError, match="resized_height 100000 and resized_width 100000 are " + message):
        target_sizes((10, 10), (3136, 10_000), (100_000, 100_000), 28)
    with pytest.raises(UsageError, match=r"min_pixels asks for 999999999999 pixels \(1275510204 tokens\)"):
        target_sizes((10, 10), (999_999_999_999, 999_999_999_999), (None, None), 28)


@pytest.mark.parametrize(("rows", "columns"), [(40, 64), (90, 31), (56, 120), (200, 56)])
def test_the_order_of_additions_does_not_show(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    """Another BLAS, on another machine, is stood in for by sums that are off by as much as one may be."""
    generator = np.random.default_rng(rows)
    frame = generator.integers(0, 256, (rows, columns, 3), np.uint8)
    wanted = resize_frame(frame, 56, 64)
    matmul = np.matmul

    def another(x: Any, y: Any, out: Any) -> None:
        matmul(x, y, out=out)
        out += generator.uniform(-1e-4, 1e-4, out.shape).astype(np.float32)

    monkeypatch.setattr(np, "matmul", another)
    assert all(np.array_equal(resize_frame(frame, 56, 64), wanted) for _ in range(20))


def test_numbers_in_the_middle_are_summed_as_the_reference_does() -> None:
    """Halving what alternates between 127 and 128 gives 127.5 nearly everywhere; rounding decides."""
    frame = np.repeat((127 + np.indices((56, 112)).sum(axis=0) % 2)[..., None], 3, axis=2).astype(np.uint8)
    got = resize_frame(frame, 28, 56)
    across = [[_line(frame[row, :, 0], 112, 56, x) for x in range(56)] for row in range(56)]
    columns = np.asarray(across, np.float32)
    wanted = [[np.rint(_line(columns[:, x], 56, 28, y)) for x in range(56)] for y in range(28)]
    np.testing.assert_array_equal(got[:, :, 0], np.asarray(wanted))
    assert set(np.unique(got)) == {127, 128}


def _line(values: Any, source: int, target: int, at: int) -> np.float32:
    """One output number: taps in order, each product added and rounded at once."""
    taps = resize._taps(source, target)
    total = np.float32(0)
    for n in range(int(taps.high[at] - taps.low[at])):
        total = np.float32(np.float64(values[taps.low[at] + n]) * taps.weights[at, n] + total)
    return total
