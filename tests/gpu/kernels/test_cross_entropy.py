"""The loss of rows of logits and its gradient, against float64 and against what eager code makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, assert_close, rounded, rounding
from tests.gpu.kernels.structs_cross_entropy import CrossEntropyParams

Array = npt.NDArray[Any]
SCALE = 0.25
# rows, vocab, stride: whole packs, odd widths, odd strides, few logits, one, more than shared memory has room for.
SMALL = [(3, 1032, 1040), (2, 37, 40), (3, 517, 519), (2, 64, 64), (2, 1, 1), (1, 117001, 117008)]
LARGE = [*SMALL, (64, 151936, 151936), (32, 152064, 152064), (9, 151937, 151939)]


def _run(
    device: Device, dtype: str, logits: Array, targets: Array, weights: Array | None = None, *, gradient: bool = True
) -> tuple[Array, Array]:
    """Losses, and what lies where the logits were; `logits` with their stride."""
    rows, vocab = len(targets), logits.shape[1]
    stride = logits.base.shape[1] if logits.base is not None else vocab
    whole = np.full((rows, stride), np.float32(np.nan))
    whole[:, :vocab] = logits
    buffer, losses = device.floats(whole, dtype), device.empty((rows,), "float32")
    kept = [device.put(targets.astype(np.int64)), *([] if weights is None else [device.put(weights)])]
    params = CrossEntropyParams(
        CODES[dtype], buffer.pointer, kept[0].pointer, None, losses.pointer, rows, vocab, stride
    )
    params.weights = None if weights is None else kept[1].pointer
    params.grad_scale, params.gradient = SCALE, gradient
    device.call("cross_entropy", params)
    after = buffer.numpy()
    assert np.isnan(after[:, vocab:]).all(), "written between rows"
    return losses.numpy(), after[:, :vocab]


def _case(dtype: str, shape: tuple[int, int, int], *, spread: float = 3.0) -> tuple[Array, Array, Array]:
    """Logits with the stride of the shape, targets and weights."""
    rows, vocab, stride = shape
    rng = np.random.default_rng(rows * vocab)
    logits = rounded(spread * rng.normal(size=(rows, stride)), dtype)[:, :vocab]
    targets = rng.integers(0, vocab, rows)
    targets[0] = vocab - 1
    return logits, targets, rng.uniform(0.1, 2.0, rows).astype(np.float32)


def _expected(logits: Array, targets: Array, weights: Array, r: Any) -> tuple[Array, Array]:
    """Losses in the precision of `logits`, gradients with `r` after every step."""
    weights = weights.astype(logits.dtype)
    apart = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(apart)
    sums = powers.sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    losses = weights * (np.log(sums[:, 0]) - apart[rows, targets])
    gradient = r(powers / sums)
    gradient[rows, targets] = r(gradient[rows, targets] - 1)
    return losses, r(r(gradient * weights[:, None]) * logits.dtype.type(SCALE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients(device: Device, dtype: str) -> None:
    for shape in LARGE if device.real else SMALL:
        logits, targets, weights = _case(dtype, shape)
        for of_rows in (weights, None):
            losses, gradient = _run(device, dtype, logits, targets, of_rows)
            used = np.ones_like(weights) if of_rows is None else of_rows
            true = _expected(logits.astype(np.float64), targets, used, lambda x: x)
            naive = _expected(logits, targets, used, rounding(dtype))
            assert_close(losses, true[0], naive[0], "float32")
            assert_close(gradient, true[1], naive[1], dtype)
            if shape[1] > 1e5:
                break


def test_sharp_and_far_logits(device: Device) -> None:
    """Differences of thousands, which no exponential survives, and losses near 0."""
    for dtype in DTYPES:
        logits, targets, weights = _case(dtype, (4, 200, 208), spread=2000.0)
        targets[1:] = logits.argmax(axis=1)[1:]
        losses, gradient = _run(device, dtype, logits, targets, weights)
        true = _expected(logits.astype(np.float64), targets, weights, lambda x: x)
        naive = _expected(logits, targets, weights, rounding(dtype))
        assert_close(losses, true[0], naive[0], "float32")
        assert_close(gradient, true[1], naive[1], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_gradient_the_logits_stay(device: Device, dtype: str) -> None:
    logits, targets, weights = _case(dtype, (3, 517, 519))
    with_gradient, _ = _run(device, dtype, logits, targets, weights)
    losses, after = _run(device, dtype, logits, targets, weights, gradient=False)
    np.testing.assert_array_equal(after, logits)
    np.testing.assert_array_equal(losses, with_gradient)


def test_rows_that_do_not_count_give_nothing(device: Device) -> None:
    for shape in ((4, 520, 520), (4, 37, 39)):
        logits, targets, weights = _case("bfloat16", shape)
        logits[1, 3], logits[2, 5] = np.nan, np.inf
        targets[1], weights[2] = -100, 0.0
        losses, gradient = _run(device, "bfloat16", logits, targets, weights)
        assert losses[1] == losses[2] == 0 and not gradient[1:3].any()
        assert losses[0] > 0 and losses[3] > 0 and gradient[0].any() and gradient[3].any()


def test_a_target_outside_of_the_vocabulary_is_not_a_number(device: Device) -> None:
    logits, targets, weights = _case("float32", (3, 100, 104))
    expected, _ = _run(device, "float32", logits, targets, weights)
    targets[1] = 100
    losses, gradient = _run(device, "float32", logits, targets, weights)
    assert np.isnan(losses[1]) and np.isnan(gradient[1]).all()
    np.testing.assert_array_equal(losses[::2], expected[::2])


def test_infinities_and_what_is_no_number(device: Device) -> None:
    logits, targets, _ = _case("float32", (5, 100, 100))
    logits[0, :90] = -np.inf  # masked out, some threads see nothing else
    logits[1] = -np.inf
    logits[2, 7] = np.nan
    logits[3] = -np.inf
    logits[3, 99], targets[3] = np.nan, 0
    logits[4, 50] = np.inf
    losses, gradient = _run(device, "float32", logits, targets)
    assert np.isfinite(losses[0]) and not gradient[0, :90].any()
    assert np.isnan(losses[1:]).all()


def test_order_of_threads_does_not_matter(device: Device) -> None:
    logits, targets, weights = _case("bfloat16", (3, 517, 519))
    first = _run(device, "bfloat16", logits, targets, weights)
    with device.other_order():
        second = _run(device, "bfloat16", logits, targets, weights)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_to_do_and_unknown_types(device: Device) -> None:
    assert device.status("cross_entropy", CrossEntropyParams(dtype=CODES["bfloat16"], rows=0, vocab=8)) == "ok"
    assert device.status("cross_entropy", CrossEntropyParams(dtype=CODES["int8"], rows=1, vocab=8)) == "unsupported"
