"""Which body of each op runs here, and why it is not a better one. `QVL_OPS` is read in this place alone.

auto takes the native ops where they were built and the composed ones elsewhere; composed asks for the latter; native
raises where the former cannot be had. Built or not is answered by `find_build`, the one place a native build is
plugged in at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from qvl.errors import DeviceError, UsageError, suggest
from qvl.ops.attention import AttentionImpl

VARIABLE = "QVL_OPS"
Request = Literal["auto", "native", "composed"]
Body = Literal["native", "composed", "flash"]

# The ops that a model calls for every token or patch, by the names they are exported under; `linear` and `mlp`, of
# packed weights, by those in their modules.
NAMES = ("rms_norm", "apply_rotary", "varlen_attention", "swiglu", "quick_gelu", "linear", "mlp")
# Where the native body goes by another name.
_NATIVE_NAMES = {"varlen_attention": "attention"}


@dataclass(frozen=True)
class Build:
    """What a native build offers on this machine.

    instructions: extensions of the CPU that it uses here, the widest last.
    lacking: ops it has no body for here, and the reason of each.
    """

    instructions: tuple[str, ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpStatus:
    """name: of the op. body: the one that runs. reason: why no faster one does; empty when none is faster."""

    name: str
    body: Body
    reason: str = ""


@dataclass(frozen=True)
class OpsStatus:
    """requested: QVL_OPS. built: whether native ops are there; reason: why not. instructions: those they use; on a GPU
    the architectures that they are compiled for. gpu_reason: why there are none for a GPU, whatever a run gets.
    """

    requested: Request
    built: bool
    reason: str
    instructions: tuple[str, ...]
    ops: tuple[OpStatus, ...]
    gpu_reason: str = ""


def find_build() -> Build | str:
    """The native build that this installation has, or why there is none."""
    from qvl.ops import native

    module, reason = native.installed()
    if module is None:
        return reason
    lacking = {name: "it has no native body" for name in NAMES if not hasattr(module, _NATIVE_NAMES.get(name, name))}
    return Build(tuple(module.levels()), lacking)


# What has no native body on a GPU under its own name.
_LACKING_ON_GPU = {
    "apply_rotary": "it is part of what stores keys and values",
    "varlen_attention": "the native one is for decoding; prompts take FlashAttention on cards that have it",
    "mlp": "it is linear, the gate and linear there",
}


def find_gpu_build() -> Build | str:
    """The same of the ops of a GPU."""
    from qvl.ops import cuda

    opened = cuda.installed()
    if opened.body is None:
        return opened.reason
    return Build(tuple(opened.body.architectures.split()), _LACKING_ON_GPU)


def requested() -> Request:
    """What `QVL_OPS` asks for; auto when it is not set. Raises UsageError for another word."""
    text = os.environ.get(VARIABLE) or "auto"
    known = get_args(Request)
    if text not in known:
        raise UsageError(
            f"{VARIABLE}={text} is not known; {', '.join(known[:-1])} or {known[-1]}{suggest(text, known)}"
        )
    return cast(Request, text)


def check(device: str = "cpu") -> None:
    """Raise DeviceError when native ops are asked for and cannot be had there, and UsageError as `requested`."""
    build = _build_for(device)
    if requested() == "native" and isinstance(build, str):
        raise DeviceError(f"{VARIABLE}=native: {build}; unset {VARIABLE} to run the composed ones")


def _build_for(device: str) -> Build | str:
    return find_gpu_build() if device.startswith("gpu") else find_build()


def status(attention: AttentionImpl = "composed", asked: Request | None = None, device: str = "cpu") -> OpsStatus:
    """Every op with its body, for a placement on that device whose attention runs `attention`.

    asked: None: what `requested` says, which may raise UsageError.
    """
    asked, build = asked or requested(), _build_for(device)
    missing = build if isinstance(build, str) else ""
    ops = tuple(_op(name, asked, build, attention) for name in NAMES)
    gpu = find_gpu_build()
    return OpsStatus(
        requested=asked,
        built=not missing,
        reason=missing,
        instructions=() if isinstance(build, str) else build.instructions,
        ops=ops,
        gpu_reason=gpu if isinstance(gpu, str) else "",
    )


def _op(name: str, asked: Request, build: Build | str, attention: AttentionImpl) -> OpStatus:
    if name == "varlen_attention" and attention == "flash":
        return OpStatus(name, "flash")
    if isinstance(build, str):
        return OpStatus(name, "composed", build)
    if asked == "composed":
        return OpStatus(name, "composed", f"{VARIABLE}=composed asks for it")
    reason = build.lacking.get(name, "")
    return OpStatus(name, "composed" if reason else "native", reason)
