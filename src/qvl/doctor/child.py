"""Asks Paddle, in a process of its own, where a crash costs nobody but itself. Started by `qvl.doctor.probe`.

Standard input is one JSON object (see `parts`); every part of the answer is a line of JSON on standard output as
soon as it is known, so that what was found out before a crash is kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qvl.errors import QvlError

if TYPE_CHECKING:
    from qvl.doctor.subjects import Subject

# Beside those that somebody changed: what decides about memory, exactness and the libraries in use.
_FLAGS = ("FLAGS_allocator_strategy", "FLAGS_use_onednn", "FLAGS_check_nan_inf")
_GPU_FLAGS = ("FLAGS_fraction_of_gpu_memory_to_use", "FLAGS_gpu_memory_limit_mb", "FLAGS_cudnn_deterministic")
# Paddle itself sets these while it is imported.
_NOT_OURS = ("FLAGS_enable_pir_in_executor",)


def parts(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer, a part at a time: "paddle", "placement", "ops", then "fit" for each shape and place.

    question: "device" and "dtype" as a profile has them; "threads";
    "subjects", see `Subject.to_json`; for a profile that trains,
    "training" with its "profile", "options" and the model's "config". The key "error" of a part says what of the
    request cannot be had, and the rest is then what would be had without it.
    """
    yield {"part": "paddle", **_paddle(question["threads"])}
    placement, error = _placement(question["device"], question["dtype"])
    yield {"part": "placement", **({"error": error} if error else {}), **(placement or {})}
    yield {"part": "ops", **_ops(placement or {"device": "cpu", "dtype": "float32", "attention": "composed"})}
    if placement is not None:
        yield from _fits(question["subjects"], placement)
    if question.get("training") and placement is not None:
        try:
            yield {"part": "training", **_training(question["training"], placement)}
        except QvlError as failure:  # what a run would refuse
            yield {"part": "refused", "error": str(failure)}


def _paddle(threads: int) -> dict[str, Any]:
    from qvl import environment

    before = dict(os.environ)
    environment.set_threads(threads)
    environment.prepare()
    import paddle

    prepared = {name: value for name, value in os.environ.items() if before.get(name) != value}
    on_gpu = paddle.device.is_compiled_with_cuda()
    cuda, cudnn = (str(word) if on_gpu else "" for word in (paddle.version.cuda(), paddle.version.cudnn()))
    gpus = [_gpu(index) for index in range(paddle.device.cuda.device_count())] if on_gpu else []
    return {
        "version": paddle.__version__,
        "cuda": cuda,
        "cudnn": cudnn,
        "gpus": gpus,
        "flags": _flags(on_gpu),
        "prepared": prepared,
    }


def _gpu(index: int) -> dict[str, Any]:
    import paddle

    found = paddle.device.cuda.get_device_properties(index)
    capability = f"{found.major}.{found.minor}"
    return {"index": index, "name": str(found.name), "memory": int(found.total_memory), "capability": capability}


def _flags(on_gpu: bool) -> dict[str, str]:
    """Those that matter and those that are not as Paddle has them by default."""
    import paddle

    known = paddle.base.core.globals()
    shown = {}
    for name in sorted(known.keys()):
        value, usual = known[name], known.get_default(name)
        matters = name in _FLAGS or (on_gpu and name in _GPU_FLAGS)
        if matters or ((value != usual or name in os.environ) and name not in _NOT_OURS):
            shown[name] = str(value)
    return shown


def _placement(device: str, dtype: str) -> tuple[dict[str, Any] | None, str]:
    """What a run would get; where that cannot be, what it would get without asking, and why not."""
    from qvl.model.device import choose

    error = ""
    for wish in ((device, dtype), ("auto", "auto")):
        try:
            return dataclasses.asdict(choose(*wish)), error
        except QvlError as failure:
            error = error or str(failure)
    return None, error


def _ops(placement: dict[str, Any]) -> dict[str, Any]:
    from qvl.model.device import Placement
    from qvl.ops import status
    from qvl.runtime import graph

    device, attention = placement["device"], placement["attention"]
    error, asked, graphs = "", None, ""
    try:
        graphs = graph.why_not(Placement(**placement))
        status.check()
        status.check(device)
    except QvlError as failure:  # what is asked for cannot be had; this is what there is
        error, asked = str(failure), "auto"
    found = status.status(attention, asked, device)  # type: ignore[arg-type]
    return {**dataclasses.asdict(found), "graphs": graphs, **({"error": error} if error else {})}


def _fits(subjects: list[dict[str, Any]], placement: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import paddle

    from qvl import machine
    from qvl.doctor.fit import Room, fit
    from qvl.doctor.subjects import Subject
    from qvl.runtime.memory import available_bytes

    places = [(placement["device"], placement["dtype"])]
    if placement["device"] != "cpu":
        places.append(("cpu", "float32"))
    for device, dtype in places:
        paddle.set_device(device)
        size = machine.memory_size() if device == "cpu" else _gpu(int(device.partition(":")[2]))["memory"]
        room = Room(available_bytes(), size)
        for subject in map(Subject.from_json, subjects):
            for quantize in _widths(subject, device):
                try:
                    found = fit(dataclasses.replace(subject, quantize=quantize), device, dtype, room)
                    yield {"part": "fit", **dataclasses.asdict(found)}
                except QvlError as error:  # of what is asked for; elsewhere it is no wish
                    if subject.asked and device == placement["device"]:
                        yield {"part": "quantize", "error": str(error)}


def _widths(subject: Subject, device: str) -> Sequence[str]:
    """What a shape is reckoned with: what was asked for, or everything that makes a difference."""
    from qvl.doctor.fit import QUANTISATIONS
    from qvl.doctor.subjects import is_quantised
    from qvl.hub.locate import DEMO

    if subject.asked or subject.quantize != "auto" or subject.model == DEMO or is_quantised(subject.model):
        return (subject.quantize,)
    return QUANTISATIONS if device == "cpu" else [width for width in QUANTISATIONS if width != "bf16"]


def _training(asked: dict[str, Any], placement: dict[str, Any]) -> dict[str, Any]:
    """What the longest samples that a profile takes would need. Raises QvlError for what a run refuses of the model."""
    import paddle

    from qvl.model.config import ModelConfig
    from qvl.model.device import Placement
    from qvl.profile_training import TrainingOptions
    from qvl.runtime.memory import available_bytes
    from qvl.schema import build
    from qvl.training.arithmetic import products
    from qvl.training.parts import arrangement
    from qvl.training.run import estimate_training

    paddle.set_device(placement["device"])
    config = ModelConfig.from_dict(asked["config"])
    options = build(TrainingOptions, asked["options"], asked["profile"])
    tokens = min(options.max_length, config.max_position_embeddings) * options.micro_batch_size
    parts = asked["parts"]
    arrangement(parts, parts).check(config)
    if options.products == "bfloat16":
        products(options, Placement(**placement))
    need, _, _ = estimate_training(config, options, placement["dtype"], tokens, devices=parts, parts=parts)
    # Processes on a CPU share its memory; a GPU is each one's own.
    free = available_bytes() // (parts if placement["device"] == "cpu" else 1)
    return {
        **dataclasses.asdict(need),
        "profile": asked["profile"],
        "device": placement["device"],
        "dtype": placement["dtype"],
        "total": need.total,
        "free": free,
        "fits": need.total <= free,
    }


def main() -> None:
    """Answer on the standard output that was given; whatever a library prints goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        for part in parts(json.loads(sys.stdin.read())):
            print(json.dumps(part), file=channel, flush=True)
