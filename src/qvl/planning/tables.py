"""`python -m qvl.planning.tables`: the tables of docs/scaling.md, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qvl import environment

environment.prepare()

from qvl.doctor.subjects import Subject  # noqa: E402
from qvl.model.part import fits  # noqa: E402
from qvl.model.shapes import published_config  # noqa: E402
from qvl.planning.inference import InferenceSetting, plan_inference  # noqa: E402
from qvl.planning.machines import GIB, MACHINES  # noqa: E402
from qvl.planning.training import plan_training  # noqa: E402
from qvl.profile import load_profile  # noqa: E402

_CONTEXT, _PIXELS = 32768, 1024 * 28 * 28
_SAMPLES, _TOKENS = 64, 2048
_NAMES = [machine.name for machine in MACHINES]


def inference_rows() -> Iterator[Sequence[str]]:
    """Each model on as many devices as it can be split over, up to 64."""
    yield ("model", "devices", "weights", "cache", "workspace", "together", "sent", *_NAMES)
    for name in ("2b", "7b", "72b"):
        profile = load_profile(name)
        config = published_config(profile.model)
        assert config is not None
        picture = Subject((name,), profile.model, config, _PIXELS, None, 1).picture
        for devices in (1, 2, 4, 8, 16, 32, 64):
            if not fits(config, devices):
                continue
            plan = plan_inference(InferenceSetting(config, picture, devices=devices, context=_CONTEXT))
            parts = (plan.weights, plan.cache, plan.workspace, plan.total)
            seconds = (
                f"{1000 * plan.step_seconds(machine, devices):.1f}" if plan.total <= machine.memory else "-"
                for machine in MACHINES
            )
            sent = f"{plan.sent / 1024**2:.1f}" if devices > 1 else "-"
            yield (name, str(devices), *(f"{part / GIB:.1f}" for part in parts), sent, *seconds)


def training_rows() -> Iterator[Sequence[str]]:
    """Each profile with an update of 64 samples of 2048 tokens."""
    yield (
        "profile",
        "devices",
        "parts",
        "weights",
        "gradients",
        "optimiser",
        "activations, loss",
        "together",
        "sent",
        *_NAMES,
    )
    for name, parts in (
        ("2b-lora", 1),
        ("2b-full", 1),
        ("7b-lora", 1),
        ("7b-full", 1),
        ("7b-full", 4),
        ("72b-lora", 8),
    ):
        profile = load_profile(name)
        config = published_config(profile.model)
        assert config is not None
        options = replace(profile.training, batch_size=_SAMPLES, micro_batch_size=1)
        for devices in (1, 8, 64):
            if devices < parts:
                continue
            plan = plan_training(config, options, dtype="bfloat16", devices=devices, tokens=_TOKENS, parts=parts)
            held = plan.memory
            sizes = (held.weights, held.gradients, held.optimizer, held.activations + held.loss, held.total)
            seconds = (
                f"{plan.step_seconds(machine, devices):.2f}" if held.total <= machine.memory else "-"
                for machine in MACHINES
            )
            sent = f"{plan.sent / GIB:.2f}" if devices > 1 else "-"
            yield (name, str(devices), str(parts), *(f"{size / GIB:.1f}" for size in sizes), sent, *seconds)


def markdown(rows: Iterator[Sequence[str]]) -> str:
    """The first row is the heading; numbers stand to the right."""
    heading, *others = rows
    line = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, line, *others))


def main() -> None:
    print(markdown(inference_rows()), markdown(training_rows()), sep="\n\n")


if __name__ == "__main__":
    main()
