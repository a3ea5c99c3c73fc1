"""ext/include/qvl/cuda/attention.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p


class AttentionParams(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("storage", c_int32),
        *((name, c_void_p) for name in ("q", "out", "sequences", "starts")),
        *((name, c_int64) for name in ("count", "heads", "kv_heads", "dim", "q_stride", "out_stride", "most_keys")),
        ("scale", c_float),
        ("workspace", c_void_p),
    )
