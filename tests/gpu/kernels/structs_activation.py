"""ext/include/qvl/cuda/activation.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p


class ActivationParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("x", "up", "out")),
        *((name, c_int64) for name in ("rows", "width", "x_stride", "up_stride")),
    ]


class ActivationGradParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("x", "up", "grad", "grad_x", "grad_up")),
        *((name, c_int64) for name in ("rows", "width", "x_stride")),
    ]
