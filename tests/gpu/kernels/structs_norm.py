"""ext/include/qvl/cuda/norm.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p


class NormParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("x", "delta", "sum", "weight", "bias", "gather", "out")),
        *((name, c_int64) for name in ("rows", "width")),
        ("epsilon", c_float),
    ]


class NormGradParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("x", "weight", "grad_out", "grad_sum", "grad_x", "grad_weight", "grad_bias")),
        ("workspace", c_void_p),
        *((name, c_int64) for name in ("rows", "width")),
        ("epsilon", c_float),
    ]
