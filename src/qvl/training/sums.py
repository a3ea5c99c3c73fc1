"""Figures that the processes of a run add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle


def together(numbers: Sequence[float], group: Any = None) -> list[float]:
    """Their sums over all processes, or those of a group."""
    tensor = paddle.to_tensor(numbers, "float64")
    paddle.distributed.all_reduce(tensor, group=group)
    sums: list[float] = tensor.tolist()
    return sums
