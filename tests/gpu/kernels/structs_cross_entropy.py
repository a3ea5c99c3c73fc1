"""ext/include/qvl/cuda/cross_entropy.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_bool, c_float, c_int32, c_int64, c_void_p


class CrossEntropyParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("logits", "targets", "weights", "losses")),
        *((name, c_int64) for name in ("rows", "vocab", "stride")),
        ("grad_scale", c_float),
        ("gradient", c_bool),
    ]
