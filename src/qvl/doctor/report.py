"""Puts the report together, and decides what of the request will not work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from qvl import machine
from qvl.doctor import probe, versions
from qvl.doctor.models import models, store, unusable
from qvl.doctor.records import Fit, Gpu, Op, Ops, Paddle, Report, ThreadChoice, Training
from qvl.doctor.subjects import config_of, is_quantised, subjects
from qvl.doctor.wish import Wish
from qvl.environment import choose_threads
from qvl.errors import QvlError
from qvl.hub.locate import find
from qvl.hub.names import full_name
from qvl.model.quantization import refuse_quantised
from qvl.profile import Profile
from qvl.training.refusals import refuse_untrainable

GIB = 1024**3
_MIB = 1024**2

_VARIABLES = re.compile(
    r"(QVL|FLAGS|OMP|MKL|KMP|GLOG|CUDA|NVIDIA)_\w+|HF_(HOME|HUB_CACHE|ENDPOINT|HUB_OFFLINE)|MODELSCOPE_CACHE"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def diagnose(wish: Wish) -> Report:
    """Look at everything. Raises nothing for what is broken: that is in the report."""
    installed = versions.versions()
    problems = versions.missing(installed)
    remarks = versions.remarks(installed)
    threads = _threads(wish.threads, problems, remarks)
    shapes, amiss = subjects(wish.profile)
    remarks += amiss
    if wish.profile is None:  # then the wish is about all of them
        shapes = [replace(shape, quantize=wish.quantize, cache_dtype=wish.cache_dtype) for shape in shapes]
    question = {
        "device": wish.device,
        "dtype": wish.dtype,
        "threads": threads.count or 1,
        "subjects": [shape.to_json() for shape in shapes],
        "training": _training_question(wish.profile),
    }
    answer, broken = probe.ask(question)
    paddle, ops, fits, training = _understood(answer, broken, problems)
    if not ops.built and any(fit.asked and fit.device == "cpu" and fit.quantize != "none" for fit in fits):
        remarks.append(f"quantised weights are many times slower than others without native ops: {ops.reason}")
    gpus = _gpus(paddle, remarks)
    found, unlisted = models()
    kept = store()
    remarks += [text for text in (unlisted or kept.error,) if text]
    remarks += [f"{model.id}: {model.error}" for model in found if model.error]
    problems += _wrong_readers()
    if wish.profile is not None:
        problems += _wrong_with(wish.profile, installed, fits, training)
    return Report(
        versions=installed,
        system=versions.system(),
        cpu=machine.cpu(),
        memory=machine.memory(),
        gpus=gpus,
        threads=threads,
        paddle=paddle,
        environment=_environment(),
        ops=ops,
        fits=fits,
        training=training,
        models=found,
        store=kept,
        asked=wish.to_json(),
        problems=tuple(dict.fromkeys(problems)),
        remarks=tuple(text for text in dict.fromkeys(remarks) if text not in problems),
    )


def _threads(count: int | None, problems: list[str], remarks: list[str]) -> ThreadChoice:
    cores, quota = machine.physical_cores(), machine.cpu_quota()
    try:
        chosen = choose_threads(count)
    except QvlError as error:
        problems.append(str(error))
        return ThreadChoice(None, str(error))
    if chosen.count > cores:
        remarks.append(f"{chosen.count} threads on {cores} cores get in each other's way")
    if chosen.source != "cores":
        return ThreadChoice(chosen.count, f"{chosen.source} says so")
    if quota is not None and quota < machine.allowed_threads():
        return ThreadChoice(chosen.count, f"the container grants the time of {quota:g} CPUs")
    return ThreadChoice(chosen.count, "one for each core that this process may use")


def _training_question(profile: Profile | None) -> dict[str, Any] | None:
    if profile is None or profile.command != "finetune" or _untrainable(profile):
        return None  # what would not run takes no memory
    try:
        config = config_of(profile.model)
    except QvlError:  # said as a problem where the model is looked for
        return None
    options, parts = asdict(profile.training), profile.tensor_parallel
    return {"profile": profile.name, "options": options, "config": config.to_dict(), "parts": parts}


def _untrainable(profile: Profile) -> str:
    """Why `qvl finetune` would refuse a profile before it looks at any data; nothing where it would not."""
    try:
        refuse_untrainable(profile)
        folder = find(profile.model)
        if folder is not None:
            refuse_quantised(folder, "fine-tuning")
        elif is_quantised(full_name(profile.model)):
            return f"{profile.model}: its weights are quantised; fine-tuning takes the original"
    except QvlError as error:
        return str(error)
    return ""


def _understood(
    answer: list[dict[str, Any]], broken: str, problems: list[str]
) -> tuple[Paddle, Ops, tuple[Fit, ...], Training | None]:
    """The parts of the child's answer as records."""
    parts: dict[str, dict[str, Any]] = {}
    fits: list[Fit] = []
    for part in answer:
        kind = part.pop("part")
        if kind == "fit":
            fits.append(Fit(**{**part, "profiles": tuple(part["profiles"])}))
        else:
            parts[kind] = part
    problems += [text for text in (broken, *(part.get("error", "") for part in parts.values())) if text]
    placement = parts.get("placement", {})
    placement.pop("error", None)
    known = parts.get("paddle", {})
    gpus = tuple(Gpu(**gpu) for gpu in known.pop("gpus", ()))
    paddle = Paddle(**known, **placement, gpus=gpus, error=broken)
    ops = Ops(error=broken or "not known")
    if "ops" in parts:
        part = parts["ops"]
        listed = tuple(Op(**op) for op in part["ops"])
        ops = Ops(**{**part, "ops": listed, "instructions": tuple(part["instructions"])})
    training = Training(**parts["training"]) if "training" in parts else None
    return paddle, ops, tuple(fits), training


def _gpus(paddle: Paddle, remarks: list[str]) -> tuple[Gpu, ...]:
    """Those of the driver, else those of Paddle."""
    rows = probe.nvidia()
    if rows and not paddle.error and not paddle.cuda:
        remarks.append("a GPU is here, but this is Paddle's CPU build: install paddlepaddle-gpu in its place")
    if paddle.cuda and not paddle.gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"; CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ", or its driver is too old"
        remarks.append(f"Paddle's GPU build finds no GPU here{why}")
    return tuple(map(_gpu, rows)) or paddle.gpus


def _gpu(row: dict[str, str]) -> Gpu:
    def number(name: str) -> int:
        return int(row[name]) if row[name].isdecimal() else 0

    return Gpu(
        index=number("index"),
        name=row["name"],
        memory=number("memory.total") * _MIB,
        free=number("memory.free") * _MIB,
        capability=row["compute_cap"],
        driver=row["driver_version"],
    )


def _environment() -> dict[str, str]:
    """The variables that change what qvl does, as they are set; secrets left out."""
    shown = {}
    for name, value in sorted(os.environ.items()):
        if value and _VARIABLES.fullmatch(name) and not _SECRET.search(name):
            shown[name] = re.sub(r"//[^/@\s]+@", "//", value)  # a password in a URL
    return shown


def _wrong_readers() -> list[str]:
    """A reader of clips that is asked for and not there."""
    if not os.environ.get("QVL_VIDEO_READER"):
        return []
    from qvl.processing.clip import readers

    try:
        readers()
    except QvlError as error:
        return [str(error)]
    return []


def _wrong_with(
    profile: Profile, installed: dict[str, str], fits: tuple[Fit, ...], training: Training | None
) -> Iterator[str]:
    if problem := unusable(profile):
        yield problem
    if profile.command == "finetune" and not installed.get("paddlenlp"):
        yield f"profile {profile.name} needs PaddleNLP, which is not installed: pip install 'qvl[train]'"
    if profile.command == "finetune" and (refusal := _untrainable(profile)):
        yield refusal
    if training is not None and not training.fits:
        state = training.weights + training.gradients + training.optimizer  # whatever the samples
        advice = "lower training.max_length" if state < training.free else "take a smaller model, or LoRA"
        yield (
            f"profile {profile.name} does not fit: its longest samples take {training.total / GIB:.1f} GiB on "
            f"{training.device}, {training.free / GIB:.1f} GiB are free; {advice}"
        )
    asked = next((fit for fit in fits if fit.asked), None)  # on the device that a run gets
    if asked is None or asked.verdict in ("full", "short"):
        return
    need = f"{asked.least / GIB:.1f} GiB for one picture on {asked.device} as {asked.dtype}"
    if asked.verdict == "busy":
        yield (
            f"profile {profile.name} does not fit now: it takes {need}, {asked.free / GIB:.1f} of "
            f"{asked.size / GIB:.1f} GiB are free; close other programs"
        )
    else:
        yield f"profile {profile.name} does not fit: it takes {need}, there are {asked.size / GIB:.1f} GiB"
