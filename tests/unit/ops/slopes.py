"""Gradients of ops at each level, beside those of their composed references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from qvl.ops import native
from tests.unit.ops.levels import LEVELS, normal

Arrays = list[npt.NDArray[np.float32] | None]
Op = Callable[..., paddle.Tensor | tuple[paddle.Tensor, ...]]

# Of the largest element of a gradient: sums of up to some thousand float32 products in another order.
EXACT = 1e-5


def slopes(
    mode: native.Mode,
    level: str | None,
    op: Op,
    inputs: Sequence[paddle.Tensor],
    *,
    threads: int | None = None,
    again: bool = False,
) -> tuple[Arrays, Arrays]:
    """Results of an op, and the gradients of a weighted sum of them. again: recomputed in the backward pass."""
    copies = []
    for tensor in inputs:
        copy = tensor.clone().detach()
        copy.stop_gradient = tensor.stop_gradient
        copies.append(copy)
    with native.using(mode, level=level, threads=threads if mode == "native" else None):
        found = recompute(op, *copies, use_reentrant=False) if again else op(*copies)
        results = found if isinstance(found, tuple) else (found,)
        total = sum((out * normal(*out.shape, seed=90 + i)).sum() for i, out in enumerate(results))
        total.backward()
    return [out.numpy() for out in results], [None if x.grad is None else x.grad.numpy() for x in copies]


def learning(*tensors: paddle.Tensor) -> list[paddle.Tensor]:
    for tensor in tensors:
        tensor.stop_gradient = False
    return list(tensors)


def assert_slopes(level: str, op: Op, inputs: Sequence[paddle.Tensor], exact: float = EXACT) -> None:
    """Native gradients at a level are the composed ones, and there are none that were not asked for."""
    results, gradients = slopes("native", level, op, inputs)
    expected_results, expected = slopes("composed", None, op, inputs)
    for found, wanted in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=exact, atol=exact * max(1.0, float(np.abs(wanted).max())))
    for tensor, found, wanted in zip(inputs, gradients, expected, strict=True):
        if tensor.stop_gradient:
            assert found is None
            continue
        assert found is not None and wanted is not None and found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=exact, atol=exact * max(1.0, float(np.abs(wanted).max())))


def identical(one: tuple[Arrays, Arrays], other: tuple[Arrays, Arrays]) -> None:
    for first, second in zip([*one[0], *one[1]], [*other[0], *other[1]], strict=True):
        np.testing.assert_array_equal(first, second)


needs_native = pytest.mark.skipif(not LEVELS, reason="the native ops are not built")
