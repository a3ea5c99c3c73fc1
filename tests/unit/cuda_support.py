"""The ops of a GPU run by the emulated library, in the place of those of this CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import paddle
import pytest

from ext.build_cuda import CannotBuild
from qvl.ops import native
from tests.gpu.kernels.libraries import library, on_card

T = TypeVar("T")


@functools.lru_cache(maxsize=1)
def emulated_library() -> Path:
    """Built where a source has changed. Skips a test where there is no compiler, or no bindings."""
    if native.why_not() is not None:
        pytest.skip(f"the native ops are not built: {native.why_not()}")
    if on_card():
        pytest.skip("the kernels are tested on a card now")
    try:
        return library()
    except CannotBuild as missing:
        if missing.__class__ is not CannotBuild:
            raise  # a compiler that failed
        pytest.skip(str(missing))


def both(op: Callable[[], T]) -> tuple[T, T]:
    """What the body of a GPU gives, within `cuda.emulating`, and the composed one, without gradients."""
    with paddle.no_grad():
        found = op()
        with native.using("composed"):
            return found, op()
