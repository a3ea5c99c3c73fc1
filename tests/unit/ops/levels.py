"""Running the native bodies at each level of CPU features that has its own, beside their composed references."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import paddle
import pytest

from qvl.ops import native

T = TypeVar("T")

with native.using("auto") as _module:
    LEVELS: list[str] = [] if _module is None else [n for n in ("portable", "avx2", "avx512") if n in _module.levels()]

each_level = pytest.mark.parametrize(
    "level", LEVELS or [pytest.param("none", marks=pytest.mark.skip(reason="the native ops are not built"))]
)


@contextlib.contextmanager
def running(mode: native.Mode, level: str | None = None, threads: int = 2) -> Iterator[Any]:
    """A body, without gradients. Skips the test where the native one was not built."""
    if mode == "native" and not LEVELS:
        pytest.skip("the native ops are not built")
    with paddle.no_grad(), native.using(mode, level=level, threads=threads if mode == "native" else None) as module:
        yield module


def both(level: str, op: Callable[[], T]) -> tuple[T, T]:
    """What the native body at a level gives, and the composed one."""
    with running("native", level):
        found = op()
    with running("composed"):
        return found, op()


def assert_close(found: paddle.Tensor, expected: paddle.Tensor, tolerance: float) -> None:
    """Equal within the tolerance, times the size of the number where that is above 1."""
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=tolerance, atol=tolerance)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> paddle.Tensor:
    values = np.random.default_rng([seed, *shape]).normal(scale=scale, size=shape)
    return paddle.to_tensor(values.astype(np.float32))
