"""The numerical pieces of the model, each one function with one contract, composed from Paddle ops.

Sequences are laid end to end in one row of tokens, [N, ...], with their lengths beside them: no padding exists, so a
prompt computes the same alone, in a batch, or packed with others for training.
"""

from qvl import environment

environment.prepare()

from qvl.ops.activation import quick_gelu, swiglu  # noqa: E402
from qvl.ops.attention import AttentionImpl, varlen_attention  # noqa: E402
from qvl.ops.norm import rms_norm  # noqa: E402
from qvl.ops.rotary import apply_rotary, mrope_angles, rotary_tables, vision_rotary_angles  # noqa: E402

__all__ = [
    "AttentionImpl",
    "apply_rotary",
    "mrope_angles",
    "quick_gelu",
    "rms_norm",
    "rotary_tables",
    "swiglu",
    "varlen_attention",
    "vision_rotary_angles",
]
