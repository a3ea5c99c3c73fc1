"""The weights of a run: as they are stored, or quantised."""

from __future__ import annotations

import warnings
from pathlib import Path

from qvl.model.config import ModelConfig
from qvl.model.device import Placement
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import Quantization
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.weights import Progress, load_model
from qvl.ops import native
from qvl.profile import Profile


def load(
    folder: Path,
    config: ModelConfig,
    profile: Profile,
    placement: Placement,
    quantization: Quantization | None,
    on_progress: Progress | None,
) -> Qwen2VL:
    """A model with its weights. Warns where quantised ones would be slow. Raises CheckpointError, DeviceError."""
    layout = None if profile.weight_layout == "auto" else profile.weight_layout
    if quantization is None:
        return load_model(
            folder,
            config,
            dtype=placement.dtype,
            attention=placement.attention,
            layout=layout,
            allow_pickle=profile.allow_pickle,
            on_progress=on_progress,
        )
    reason = native.why_not()
    if reason is not None and placement.device == "cpu":
        warnings.warn(
            f"{quantization.width} weights are slow here, many times slower than none, without native ops: {reason}",
            stacklevel=2,
        )
    return load_quantised(
        folder,
        config,
        quantization,
        dtype=placement.dtype,
        attention=placement.attention,
        layout=layout,
        on_progress=on_progress,
    )
