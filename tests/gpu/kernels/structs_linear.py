"""ext/include/qvl/cuda/linear.h for ctypes."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p


class LinearWeight(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_int64) for name in ("n", "k", "k_padded", "group")),
        *((name, c_void_p) for name in ("data", "scales", "zeros", "bias")),
    ]


class LinearParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("x", c_void_p),
        ("rows", c_int64),
        ("x_stride", c_int64),
        ("weights", POINTER(LinearWeight)),
        ("count", c_int64),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("workspace", c_void_p),
    ]


class UnpackParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        ("weight", POINTER(LinearWeight)),
        ("rows", c_void_p),
        ("count", c_int64),
        ("out", c_void_p),
    ]
