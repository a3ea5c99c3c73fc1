"""The numerical pieces of the model, each one function with one contract, composed from Paddle ops or native.

Sequences are laid end to end in one row of tokens, [N, ...], with their lengths beside them: no padding exists, so a
prompt computes the same alone, in a batch, or packed with others for training.
"""

from qvl import environment

environment.prepare()

from qvl.ops.activation import quick_gelu, swiglu  # noqa: E402
from qvl.ops.attention import AttentionImpl, rotary_attention, varlen_attention, vision_attention  # noqa: E402
from qvl.ops.bodies import gpu_for, runs_natively, works_natively  # noqa: E402
from qvl.ops.cached import (  # noqa: E402
    CacheRows,
    Projected,
    cached_attention,
    load_rows,
    reads_starts,
    rotary_store,
    starts_of,
    store_rows,
)
from qvl.ops.linear import learning_linear  # noqa: E402
from qvl.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm  # noqa: E402
from qvl.ops.products import can_round, rounding  # noqa: E402
from qvl.ops.rotary import (  # noqa: E402
    apply_rotary,
    half_tables,
    mrope_angles,
    rotary_tables,
    vision_rotary_angles,
)
from qvl.ops.sampling import Draw, SamplingRule, sample, sample_rows, samples_there  # noqa: E402

__all__ = [
    "AttentionImpl",
    "CacheRows",
    "Draw",
    "Projected",
    "SamplingRule",
    "add_layer_norm",
    "add_rms_norm",
    "apply_rotary",
    "cached_attention",
    "can_round",
    "gpu_for",
    "half_tables",
    "layer_norm",
    "learning_linear",
    "load_rows",
    "mrope_angles",
    "quick_gelu",
    "reads_starts",
    "rms_norm",
    "rotary_attention",
    "rotary_store",
    "rotary_tables",
    "rounding",
    "runs_natively",
    "sample",
    "sample_rows",
    "samples_there",
    "starts_of",
    "store_rows",
    "swiglu",
    "varlen_attention",
    "vision_attention",
    "vision_rotary_angles",
    "works_natively",
]
