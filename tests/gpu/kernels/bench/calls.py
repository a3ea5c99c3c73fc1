"""Launches that are set up once and repeated, as a step or a timed loop needs them. All sizes are in elements."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.gpu.kernels.caches import Cache, sequences_of
from tests.gpu.kernels.devices import STATUS, Device, KernelError
from tests.gpu.kernels.numerics import CODES
from tests.gpu.kernels.structs_activation import ActivationParams
from tests.gpu.kernels.structs_attention import AttentionParams
from tests.gpu.kernels.structs_linear import LinearParams, LinearWeight
from tests.gpu.kernels.structs_norm import NormParams
from tests.gpu.kernels.structs_rotary import RotaryParams
from tests.gpu.kernels.structs_sampling import SamplingParams, SamplingRule

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class Memory(Protocol):
    """A buffer, or a place in one."""

    @property
    def pointer(self) -> int: ...


@dataclass(frozen=True)
class Place:
    """`at` elements behind the begin of a buffer."""

    buffer: Memory
    at: int
    dtype: str

    @property
    def pointer(self) -> int:
        return self.buffer.pointer + self.at * BYTES[self.dtype]


class Launch:
    """Puts one op on the device's stream and does not wait for it. Keeps alive what the struct points to."""

    def __init__(self, device: Device, op: str, params: ctypes.Structure, *kept: Any, workspace: bool = False) -> None:
        self.op, self.params, self._device, self._kept = op, params, device, list(kept)
        self._function = getattr(device.library, f"qvl_cuda_{op}")
        self._function.restype, self._function.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]
        self._address = ctypes.addressof(params)
        if workspace and (memory := device.workspace(op, params)):
            params.workspace = memory.pointer
            self._kept.append(memory)

    def keeping(self, *more: Any) -> Launch:
        """Also alive from now on."""
        self._kept.extend(more)
        return self

    def __call__(self) -> None:
        """Raises KernelError when the launch is refused."""
        code = self._function(self._address, self._device.stream)
        if code != 0:
            raise KernelError(f"{self.op}: {STATUS.get(code, code)} {self._device.library.qvl_cuda_error().decode()}")


def rms_norm(
    device: Device,
    dtype: str,
    size: tuple[int, int],
    x: Memory,
    weight: Memory,
    out: Memory,
    delta: Memory | None = None,
) -> Launch:
    """size: rows and width. With `delta`, x becomes x + delta."""
    params = NormParams(CODES[dtype], x.pointer, weight=weight.pointer, out=out.pointer, epsilon=1e-6)
    params.rows, params.width = size
    if delta is not None:
        params.delta, params.sum = delta.pointer, x.pointer
    return Launch(device, "rms_norm", params, x, weight, out, delta)


def swiglu(device: Device, dtype: str, size: tuple[int, int], gate_up: Memory, out: Memory) -> Launch:
    """size: rows and width of one of both, which lie side by side in the rows of gate_up."""
    rows, width = size
    up = Place(gate_up, width, dtype)
    strides = (2 * width, 2 * width)
    params = ActivationParams(CODES[dtype], gate_up.pointer, up.pointer, out.pointer, rows, width, *strides)
    return Launch(device, "swiglu", params, gate_up, out)


@dataclass(frozen=True)
class Heads:
    """How many there are, and their size."""

    q: int
    kv: int
    dim: int

    @property
    def width(self) -> int:
        """Of a row with q, k and v side by side."""
        return (self.q + 2 * self.kv) * self.dim


@dataclass(frozen=True)
class Sequences:
    """The caches of a step, with `tokens` new ones for each, behind `starts` (int32, on the device)."""

    caches: Sequence[Cache]
    tokens: Sequence[int]
    starts: Memory
    storage: str
    most_keys: int


def rotary_store(
    device: Device, dtype: str, heads: Heads, qkv: Memory, biases: Memory, tables: tuple[Memory, Memory], out: Memory,
    sequences: Sequences,
) -> Launch:  # fmt: skip
    """qkv: rows with q, k and v side by side; biases: one such row; tables: cos and sin of each row."""
    host = sequences_of(sequences.caches, sequences.tokens)
    params = RotaryParams(CODES[dtype], CODES[sequences.storage], sequences=ctypes.addressof(host))
    at = {"q": 0, "k": heads.q * heads.dim, "v": (heads.q + heads.kv) * heads.dim}
    for name, place in at.items():
        setattr(params, name, Place(qkv, place, dtype).pointer)
        setattr(params, f"{name}_bias", Place(biases, place, dtype).pointer)
        setattr(params, f"{name}_stride", heads.width)
    params.cos, params.sin = (table.pointer for table in tables)
    params.q_out, params.starts, params.count = out.pointer, sequences.starts.pointer, len(sequences.caches)
    params.heads, params.kv_heads, params.dim = heads.q, heads.kv, heads.dim
    return Launch(device, "rotary_store", params, host, qkv, biases, tables, out, sequences)


def attention(device: Device, dtype: str, heads: Heads, q: Memory, out: Memory, sequences: Sequences) -> Launch:
    host = sequences_of(sequences.caches, sequences.tokens)
    params = AttentionParams(CODES[dtype], CODES[sequences.storage], q.pointer, out.pointer, ctypes.addressof(host))
    params.starts, params.count = sequences.starts.pointer, len(sequences.caches)
    params.heads, params.kv_heads, params.dim = heads.q, heads.kv, heads.dim
    params.q_stride = params.out_stride = heads.q * heads.dim
    params.most_keys, params.scale = sequences.most_keys, heads.dim**-0.5
    return Launch(device, "attention", params, host, q, out, sequences, workspace=True)


def linear(
    device: Device, dtype: str, rows: int, weights: Sequence[LinearWeight], x: Memory, out: Memory,
    residual: Memory | None = None,
) -> Launch:  # fmt: skip
    """x W^T + residual, outputs of several weights side by side; rows one behind the other."""
    structs = (LinearWeight * len(weights))(*weights)
    params = LinearParams(CODES[dtype], x.pointer, rows, weights[0].k, structs, len(weights))
    params.out, params.out_stride = out.pointer, sum(weight.n for weight in weights)
    params.residual = None if residual is None else residual.pointer
    return Launch(device, "linear", params, structs, x, out, residual, workspace=True)


def sample(device: Device, dtype: str, size: tuple[int, int], logits: Memory, rules: Memory, tokens: Memory) -> Launch:
    """size: rows and words. rules: as many SamplingRule, as bytes, without lists of tokens."""
    rows, count = size
    params = SamplingParams(CODES[dtype], logits.pointer, rules.pointer, None, None, tokens.pointer)
    params.rows, params.count, params.stride = rows, count, count
    return Launch(device, "sample", params, logits, rules, tokens, workspace=True)


def rules(rows: int, **of_each: float) -> bytes:
    """Greedy ones, or as said: temperature, top_k, top_p, uniform."""
    rule = SamplingRule(top_p=1.0, penalty=1.0, temperature=1.0, min_logit=float("-inf"), greedy=not of_each)
    for name, value in of_each.items():
        setattr(rule, name, value)
    return bytes(rule) * rows
