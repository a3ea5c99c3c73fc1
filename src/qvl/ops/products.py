"""Products of linear layers in training, with operands rounded to bfloat16 and sums in float32.

A CPU with a tile unit (AMX) does them several times as fast as those of float32, one with dot products of pairs
(AVX512-BF16, Zen 4 and later) up to twice. They are for training alone, within `rounding`: answers do not depend on
what a CPU has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import paddle

from qvl.ops import native


class _State(threading.local):
    """Of each thread: one that trains rounds, while another may answer with the same ops."""

    rounds = False


_state = _State()


def can_round() -> bool:
    """Whether this CPU, with the native ops, has a unit for such products."""
    module = native.library()
    return module is not None and bool(module.has_product())


@contextlib.contextmanager
def rounding(wanted: bool = True) -> Iterator[None]:
    """Within the block, in this thread, linear layers of float32 on the CPU round what they multiply.

    Where nothing does that, see `can_round`, they are as ever.
    """
    before, _state.rounds = _state.rounds, wanted and can_round()
    try:
        yield
    finally:
        _state.rounds = before


def module_for_product(x: paddle.Tensor, weight: paddle.Tensor) -> Any:
    """The library where x [N, k] and a weight [k, n] are to be multiplied by it, else None."""
    if not _state.rounds or x.ndim != 2 or not paddle.in_dynamic_mode():
        return None
    for tensor in (x, weight):
        if tensor.dtype != paddle.float32 or not tensor.place.is_cpu_place():
            return None
    return native.library()
