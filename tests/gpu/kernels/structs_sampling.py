"""ext/include/qvl/cuda/sampling.h for ctypes."""

from __future__ import annotations

from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p


class SamplingRule(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("seen_begin", "seen_end", "banned_begin", "banned_end", "top_k")),
        *((name, c_double) for name in ("top_p", "uniform")),
        *((name, c_float) for name in ("penalty", "temperature", "min_logit")),
        ("greedy", c_int32),
    ]


class SamplingParams(Structure):
    _fields_ = [
        ("dtype", c_int32),
        *((name, c_void_p) for name in ("logits", "rules", "seen", "banned", "tokens", "workspace")),
        *((name, c_int64) for name in ("rows", "count", "stride")),
    ]
