"""Merging an adapter with proof: the merged model is asked about a picture before its folder gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError, QvlError
from qvl.messages import Image, Message
from qvl.model.adapter import Adapter, apply_adapter
from qvl.model.checkpoint import Layout, list_tensors
from qvl.model.checkpoint_writer import STORED_NAMES
from qvl.model.merge import Progress, check_merge, merge_adapter, stored_dtypes
from qvl.model.safetensors_io import bfloat16_bits, bfloat16_to_float32
from qvl.profile import Profile

if TYPE_CHECKING:
    from qvl.runtime.engine import Engine

Logits = npt.NDArray[np.float32]

# How far logits of the merged folder may be from those of the same sums made in memory and rounded to the stored
# dtype, over their range, both computed in float32. Sums may differ in their last bit, which can turn a rounding.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Comparison:
    """Figures over the range of the logits.

    difference: from the adapter's to the merged model's; in 16 bits that is what rounding the weights does.
    error: from what the merged model should answer, its weights rounded, to what it does.
    moved: from the base's to the adapter's.
    """

    difference: float
    error: float
    moved: float

    @property
    def is_hidden(self) -> bool:
        """Whether rounding the weights took most of what the adapter does."""
        return self.difference > self.moved / 2 > 0


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: str | None = None,
    layout: Layout | None = None,
    compared: bool = True,
    on_progress: Progress | None = None,
) -> Comparison | None:
    """Like `merge_adapter`; `compared`: then answer about a picture with both, else return None.

    Raises what that raises, and CheckpointError when the logits differ by more than rounding; nothing is left then.
    """
    if not compared:
        merge_adapter(base, adapter, out, dtype=dtype, layout=layout, on_progress=on_progress)
        return None
    check_merge(base, adapter, out, dtype, layout)
    # Before anything is written, so that a model that is too large for this machine is known at once.
    wanted = _wanted(base, adapter, dtype, layout)
    results: list[Comparison] = []

    def check(folder: Path) -> None:
        results.append(_compare(_open(folder).next_logits([question()]), *wanted))
        stored = stored_dtypes(folder)
        tolerance = max(TOLERANCES[name] for name in stored)
        found = results[-1].error if stored & {"float16", "bfloat16"} else results[-1].difference
        if not found <= tolerance:  # a NaN is not
            raise CheckpointError(
                f"merged logits differ from the adapter's by {found:.1e} of their range beside what "
                f"rounding to {'/'.join(sorted(stored))} explains, over {tolerance:.0e}; nothing is kept"
            )

    merge_adapter(base, adapter, out, dtype=dtype, layout=layout, on_progress=on_progress, check=check)
    return results[-1]


def _compare(got: Logits, plain: Logits, adapted: Logits, rounded: Logits) -> Comparison:
    spread = float(adapted.max() - adapted.min())
    difference, error, moved = (
        float(np.abs(one - other).max()) / spread for one, other in ((got, adapted), (got, rounded), (adapted, plain))
    )
    return Comparison(difference, error, moved)


def _wanted(
    base: Path, adapter_folder: Path, dtype: str | None, layout: Layout | None
) -> tuple[Logits, Logits, Logits]:
    """Logits of the base, of the adapter over it, and of sums made in memory, rounded as they are to be stored."""
    adapter = Adapter.open(adapter_folder)
    engine = _open(base, layout)
    prompt = engine.prompt([question()])
    plain = engine.next_logits(prompt)
    take_off = apply_adapter(engine.model, adapter)
    adapted = engine.next_logits(prompt)
    take_off()
    entries = list_tensors(base, layout)
    stored = {name: STORED_NAMES[dtype] if dtype else entry.dtype for name, entry in entries.items()}
    for name, parameter in engine.model.named_parameters():
        values = parameter.numpy()
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in adapter.modules:
            a, b = adapter.factors(module)
            values = values + np.float32(adapter.scale(module)) * (a.T @ b.T)
        parameter.set_value(_rounded(values, stored[name]))
    return plain, adapted, engine.next_logits(prompt)


def _rounded(values: npt.NDArray[np.float32], stored: str) -> npt.NDArray[np.float32]:
    if stored == "BF16":
        return bfloat16_to_float32(bfloat16_bits(values))
    return values.astype(np.float16).astype(np.float32) if stored == "F16" else values


def _open(folder: Path, layout: Layout | None = None) -> Engine:
    """A model in float32 with its weights. Raises QvlError that says how to do without.

    It keeps no features of pictures: those of one tower would answer for another, whose weights were changed.
    """
    from qvl.runtime.engine import Engine

    profile = Profile(model=str(folder), dtype="float32", weight_layout=layout or "auto", feature_cache_mib=0)
    try:
        return Engine.load(profile)
    except QvlError as error:
        raise type(error)(f"{error} (--no-check merges without comparing answers)") from None


def question() -> Message:
    """A picture of a gradient, a chequer and a disc, 112 by 84 pixels, and a question about it."""
    y, x = np.mgrid[0:84, 0:112]
    picture = np.stack([x * 255 // 111, y * 255 // 83, (x // 8 + y // 8) % 2 * 255], axis=-1).astype(np.uint8)
    picture[(x - 70) ** 2 + (y - 40) ** 2 < 400] = (220, 40, 40)
    return Message.of("user", Image(picture), "What is in this picture?")
