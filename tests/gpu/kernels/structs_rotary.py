"""ext/include/qvl/cuda/cache.h and rotary.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p


class CacheSequence(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("k", "v", "k_scale", "v_scale")),
        ("tokens", c_int64),
    )


class RotaryParams(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("storage", c_int32),
        *((name, c_void_p) for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias", "cos", "sin", "q_out")),
        ("sequences", c_void_p),
        ("starts", c_void_p),
        *((name, c_int64) for name in ("count", "heads", "kv_heads", "dim", "q_stride", "k_stride", "v_stride")),
    )


class RotateParams(Structure):
    _fields_ = (
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("x", "cos", "sin")),
        *((name, c_int64) for name in ("rows", "heads", "dim", "stride")),
    )
