"""`qvl plan`: what a profile would take of devices that are not here, before anyone rents them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from qvl.cli import render
from qvl.cli.options import flattened, option
from qvl.errors import UsageError, suggest
from qvl.profile import Profile, load_profile

if TYPE_CHECKING:
    from qvl.doctor.subjects import Subject
    from qvl.planning.inference import InferencePlan
    from qvl.planning.machines import Machine
    from qvl.planning.training import TrainingPlan

_GIB = 1024**3
_SAMPLE = 2048  # tokens of a sample, where nothing is said


@dataclass(frozen=True)
class PlanOptions:
    """What is planned, and for what."""

    panel: ClassVar[str] = "Plan"

    profile: Annotated[
        str, option("--profile", metavar="NAME|FILE", help="Of infer or finetune, see 'qvl profiles'; 72b without it.")
    ] = "72b"
    settings: Annotated[list[str], option("--set", metavar="KEY=VALUE", help="Any key of the profile. Repeatable.")] = (
        field(default_factory=list)
    )
    devices: Annotated[
        int | None,
        option(
            "--devices", min=1, metavar="N", help="How many; without it, as many as the profile splits a model over."
        ),
    ] = None
    machine: Annotated[
        str | None,
        option("--machine", metavar="NAME", help="One of A100-80G, H100, H200, A10, 4090; else all of them."),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            metavar="bfloat16|float16|float32",
            help="Of the weights; the profile's without it, and bfloat16 where that is auto.",
        ),
    ] = None
    context: Annotated[
        int | None, option("--context", min=2, metavar="N", help="Tokens: of prompt and answer, or of a sample.")
    ] = None
    batch: Annotated[
        int | None, option("--batch", min=1, metavar="N", help="Answers at a time; 1 without it. Of infer alone.")
    ] = None
    as_json: Annotated[bool, option("--json", help="Print it as JSON, in bytes and seconds.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def plan(options: PlanOptions) -> None:
    """Show memory by device, exchanges and the least time of a step, for devices that need not be here."""
    with render.manners(render.AnswerWriter(silent=False)):
        from qvl import environment

        environment.prepare()

        from qvl.doctor.subjects import subject_of

        profile = load_profile(options.profile, options.settings)
        if options.dtype is not None:
            if options.dtype not in ("bfloat16", "float16", "float32"):
                raise UsageError(f"--dtype {options.dtype}: bfloat16, float16 or float32 was expected")
            profile = profile.revised({"dtype": options.dtype}, "--dtype")
        dtype = "bfloat16" if profile.dtype == "auto" else profile.dtype
        machines, subject = _machines(options.machine), subject_of(profile)
        _check(options, profile, subject)
        devices = options.devices or subject.parts
        planned = _training if profile.command == "finetune" else _inference
        record = planned(profile, subject, devices, dtype, options, machines)
        print(json.dumps(record, indent=2) if options.as_json else _screen(record), flush=True)


def _check(options: PlanOptions, profile: Profile, subject: Subject) -> None:
    """Raise UsageError for what could only be planned as something else."""
    from qvl.doctor.subjects import is_quantised

    training = profile.training if profile.command == "finetune" else None
    if training is not None:
        from qvl.training.refusals import refuse_untrainable

        refuse_untrainable(profile)
        if options.batch is not None:
            raise UsageError("--batch is of answers; an update takes --set training.batch_size=N samples")
    stored = is_quantised(subject.model)
    if stored and training is not None:
        raise UsageError(f"{subject.model} is quantised; fine-tuning takes the original")
    if stored or profile.quantize not in ("auto", "none"):
        what = f"{subject.model} is quantised, and " if stored else ""
        raise UsageError(f"{what}quantised weights stay on one device; 'qvl doctor' shows what they take")
    if profile.devices is not None and profile.tensor_parallel not in (1, subject.parts):
        asked = f"devices {profile.devices} and tensor_parallel={profile.tensor_parallel}"
        raise UsageError(f"{asked} do not agree; leave out one of them")
    limit = subject.config.max_position_embeddings
    if options.context is not None and options.context > limit:
        raise UsageError(f"--context {options.context}: {subject.model} takes at most {limit} tokens")
    if options.context is not None and training is not None and options.context > training.max_length:
        raise UsageError(
            f"--context {options.context}: the profile's samples have at most training.max_length={training.max_length}"
        )


def _machines(name: str | None) -> tuple[Machine, ...]:
    from qvl.planning.machines import MACHINES

    if name is None:
        return MACHINES
    found = tuple(machine for machine in MACHINES if machine.name.lower() == name.lower())
    if not found:
        names = [machine.name for machine in MACHINES]
        raise UsageError(f"--machine {name}: one of {', '.join(names)} was expected{suggest(name, names)}")
    return found


def _inference(
    profile: Profile, subject: Subject, devices: int, dtype: str, options: PlanOptions, machines: tuple[Machine, ...]
) -> dict[str, Any]:
    from qvl.planning.inference import InferenceSetting, plan_inference

    batch = options.batch or 1
    context = options.context or subject.context
    tokens = profile.generation.max_new_tokens
    if context <= tokens:
        tokens = context // 2
    # A picture has to leave room for the answer.
    area = min(profile.max_pixels or 28 * 28 * 16384, 28 * 28 * max(1, context - tokens - 64))
    setting = InferenceSetting(
        subject.config,
        replace(subject, max_pixels=area).picture,
        dtype,
        dtype if profile.cache_dtype == "auto" else profile.cache_dtype,
        devices,
        context,
        tokens,
        batch,
    )
    made: InferencePlan = plan_inference(setting)
    times = [
        _on(
            machine,
            made.total,
            token_seconds=made.step_seconds(machine, devices),
            prompt_seconds=made.prompt_seconds(machine, devices),
        )
        for machine in machines
    ]
    asked = {"context": context, "new_tokens": tokens, "batch": batch}
    return {**_heading(profile, devices, dtype), **asked, "device": made.to_json(), "machines": times}


def _training(
    profile: Profile, subject: Subject, devices: int, dtype: str, options: PlanOptions, machines: tuple[Machine, ...]
) -> dict[str, Any]:
    from qvl.planning.training import plan_training
    from qvl.training.parts import Arrangement

    training = profile.training
    arranged = Arrangement(0, devices, profile.tensor_parallel)
    arranged.check(subject.config)
    if training.batch_size % (training.micro_batch_size * arranged.replicas):
        models = "devices" if arranged.parts == 1 else f"models of {arranged.parts} devices"
        raise UsageError(
            f"batch_size {training.batch_size} is not a multiple of micro_batch_size {training.micro_batch_size} on "
            f"{arranged.replicas} {models}"
        )
    tokens = options.context or min(_SAMPLE, training.max_length, subject.config.max_position_embeddings)
    made: TrainingPlan = plan_training(
        subject.config,
        training,
        dtype=dtype,
        devices=devices,
        tokens=tokens,
        parts=profile.tensor_parallel,
    )
    times = [
        _on(machine, made.memory.total, update_seconds=made.step_seconds(machine, devices)) for machine in machines
    ]
    return {
        **_heading(profile, devices, dtype),
        "batch_size": training.batch_size,
        "device": made.to_json(),
        "machines": times,
    }


def _heading(profile: Profile, devices: int, dtype: str) -> dict[str, Any]:
    names = {"profile": profile.name, "model": profile.model, "command": profile.command}
    return {**names, "dtype": dtype, "devices": devices}


def _on(machine: Machine, total: int, **seconds: float) -> dict[str, Any]:
    return {"machine": machine.name, "memory": machine.memory, "fits": total <= machine.memory, **seconds}


_PARTS = {
    "weights": "weights",
    "cache": "KV cache",
    "workspace": "workspace of a prompt",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "activations": "activations",
    "loss": "loss",
    "total": "together",
}
_TIMES = {"token_seconds": "a token", "prompt_seconds": "a full prompt", "update_seconds": "an update"}


def _screen(record: dict[str, Any]) -> str:
    device, count = record["device"], record["devices"]
    where = "1 device" if count == 1 else f"{count} devices"
    lines = [f"{record['model']} in {record['dtype']} on {where}, profile {record['profile']}"]
    if record["command"] == "infer":
        answers = "1 answer" if record["batch"] == 1 else f"{record['batch']} answers"
        lines.append(f"{record['context']} tokens of context, {answers} at a time")
        sent = f"a token: {_size(device['sent'])} sent by each device, in {device['exchanges']} exchanges"
    else:
        parts = f", each model on {device['parts']} devices" if device["parts"] > 1 else ""
        lines.append(f"{record['batch_size']} samples of {device['tokens']} tokens an update{parts}")
        sent = f"an update: {_size(device['sent'])} sent by each device"
    lines += ["", "GiB on each device"]
    lines += [f"  {label:<24}{device[name] / _GIB:9.2f}" for name, label in _PARTS.items() if name in device]
    lines += ["", sent if count > 1 else "nothing is sent", "", "at least, where compute and memory run at their peak"]
    for row in record["machines"]:
        times = [f"{_time(row[name])} {label}" for name, label in _TIMES.items() if name in row]
        fits = ", ".join(times) if row["fits"] else f"does not fit in {row['memory'] / _GIB:.4g} GiB"
        lines.append(f"  {row['machine']:<10}{fits}")
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, size in (("GiB", _GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _time(seconds: float) -> str:
    if round(seconds, 2) >= 0.1:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
