"""What the products of linear layers are rounded to in a run: `training.products`."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager

from qvl import ops
from qvl.errors import DeviceError
from qvl.model.device import Placement
from qvl.profile_training import TrainingOptions


def products(options: TrainingOptions, placement: Placement) -> AbstractContextManager[None]:
    """The context in which a run trains.

    Raises DeviceError where "bfloat16" is asked for and there is nothing that does it; "auto" then warns.
    """
    if options.products == "float32":
        return ops.rounding(False)
    reason = _why_not(placement)
    if reason is not None and options.products == "bfloat16":
        raise DeviceError(f"training.products=bfloat16: {reason}")
    if reason is not None:
        warnings.warn(f"products are done in {placement.dtype}, which takes longer: {reason}", stacklevel=2)
    return ops.rounding(reason is None)


def _why_not(placement: Placement) -> str | None:
    if placement.device != "cpu" or placement.dtype != "float32":
        return f"it is for float32 on a CPU, not {placement.dtype} on {placement.device}"
    return None if ops.can_round() else "it takes native ops and a CPU with AVX512-BF16 or AMX"
