"""What `qvl doctor` reports: plain records, which are the keys of --json as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qvl.machine import Cpu, Memory

# full: with the whole context. short: with less of it. busy: not in what is free now, but in what there is. no: never.
Verdict = Literal["full", "short", "busy", "no"]


@dataclass(frozen=True)
class Gpu:
    """As NVIDIA's driver or Paddle names it. memory: bytes; free: None where it is not known. capability: "9.0"."""

    index: int
    name: str
    memory: int
    free: int | None = None
    capability: str = ""
    driver: str = ""


@dataclass(frozen=True)
class ThreadChoice:
    """count: None when the wish for it cannot be met. reason: why that many."""

    count: int | None
    reason: str


@dataclass(frozen=True)
class Paddle:
    """error: why it does not run here, and then nothing else is known. cuda: version it was built for, if any.

    gpus: those it can use. flags: by name, those that matter or were changed, as text. prepared: variables that qvl
    sets for it. device, dtype, attention: what a run gets.
    """

    error: str = ""
    version: str = ""
    cuda: str = ""
    cudnn: str = ""
    gpus: tuple[Gpu, ...] = ()
    flags: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    attention: str = ""


@dataclass(frozen=True)
class Op:
    name: str
    body: str
    reason: str = ""


@dataclass(frozen=True)
class Ops:
    """Native ops and what runs of them, on the device that a run gets. error: why nothing is known.

    gpu_reason: why there are none for a GPU. graphs: why decode steps are not captured in CUDA graphs.
    """

    requested: str = ""
    built: bool = False
    reason: str = ""
    instructions: tuple[str, ...] = ()
    ops: tuple[Op, ...] = ()
    error: str = ""
    gpu_reason: str = ""
    graphs: str = ""


@dataclass(frozen=True)
class Fit:
    """Whether profiles of one shape fit on one device, in bytes by parts.

    profiles: names. asked: this is what the flags name. context: tokens of prompt and answer that the cache is for;
    usable_context: how many of them fit. vision: while a picture of the profile's largest size is encoded; prefill:
    while a prompt of the whole context is read; total: with the larger of the two. free, size: of the device.
    """

    profiles: tuple[str, ...]
    model: str
    device: str
    dtype: str
    quantize: str
    asked: bool
    context: int
    weights: int
    cache: int
    vision: int
    prefill: int
    total: int
    least: int
    usable_context: int
    free: int
    size: int
    verdict: Verdict


@dataclass(frozen=True)
class Training:
    """What a fine-tuning profile takes for its longest samples, in bytes by parts."""

    profile: str
    device: str
    dtype: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    total: int
    free: int
    fits: bool


@dataclass(frozen=True)
class Model:
    """A checkpoint that is here. keeper: whose folder it is. state: as `StoredModel`, or "damaged".

    error: what is wrong with it. bytes: of its files.
    """

    id: str
    folder: str
    bytes: int
    keeper: str
    state: str
    error: str = ""


@dataclass(frozen=True)
class Store:
    """Where qvl keeps models. free: bytes on that disk, None when it cannot be known. error: why not."""

    folder: str
    free: int | None
    error: str = ""


@dataclass(frozen=True)
class Report:
    """Everything. problems: what was asked for and will not work; empty when all is well. remarks: worth knowing."""

    versions: dict[str, str]
    system: str
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    threads: ThreadChoice
    paddle: Paddle
    environment: dict[str, str]
    ops: Ops
    fits: tuple[Fit, ...]
    training: Training | None
    models: tuple[Model, ...]
    store: Store
    asked: dict[str, Any]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems
