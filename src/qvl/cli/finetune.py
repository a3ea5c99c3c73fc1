"""`qvl finetune`: teach a model from conversations with pictures and clips."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from qvl.cli import render
from qvl.cli.options import flattened, option
from qvl.cli.paths import check_plot, local
from qvl.cli.watch import LiveLine, Watch
from qvl.errors import DeviceError, UsageError
from qvl.profile import Profile, load_profile

if TYPE_CHECKING:
    from qvl.cli.processes import Nodes

_NEEDS = "qvl finetune needs PaddleNLP: pip install -c constraints.txt 'qvl[train]'"
_RANK = "PADDLE_TRAINER_ID"


@dataclass(frozen=True)
class DataOptions:
    """What to learn from, and where the result goes."""

    panel: ClassVar[str] = "Data"

    data: Annotated[
        str | None, option("--data", metavar="FILE", help="Conversations: JSON, JSONL or a meta file of a mix.")
    ] = None
    output: Annotated[
        str | None, option("--output", "-o", metavar="DIR", help="Checkpoints, metrics.jsonl and the result.")
    ] = None
    check_data: Annotated[bool, option("--check-data", help="Read every picture and clip before the start.")] = False
    show_sample: Annotated[
        int | None,
        option("--show-sample", min=0, metavar="N", help="Print sample N as the model sees it, and stop."),
    ] = None


@dataclass(frozen=True)
class RecipeOptions:
    """Which model learns, and how. All else is in the profile: --set training.KEY=VALUE."""

    panel: ClassVar[str] = "Recipe"

    profile: Annotated[
        str, option("--profile", metavar="NAME|FILE", help="A profile for finetune; 2b-lora without it.")
    ] = "2b-lora"
    model: Annotated[
        str | None, option("--model", metavar="NAME|DIR", help="A checkpoint, in place of the profile's.")
    ] = None
    settings: Annotated[
        list[str],
        option("--set", metavar="KEY=VALUE", help="Any key of the profile, such as training.epochs=2. Repeatable."),
    ] = field(default_factory=list)
    max_steps: Annotated[int | None, option("--max-steps", min=1, help="Updates, in place of epochs.")] = None
    seed: Annotated[int | None, option("--seed", min=0, help="Of data order, initialisation and dropout.")] = None
    device: Annotated[str | None, option("--device", metavar="auto|cpu|gpu", help="Where to train.")] = None
    nproc: Annotated[
        int | None, option("--nproc", min=1, metavar="N", help="Processes on this machine: a GPU each, or on CPUs.")
    ] = None
    tensor_parallel: Annotated[
        int | None, option("--tensor-parallel", min=1, metavar="N", help="Split the model over so many of them.")
    ] = None
    sharding: Annotated[
        str | None,
        option(
            "--sharding",
            metavar="none|stage1|stage2|stage3",
            help="What processes share out: the optimiser's state, gradients too, weights too.",
        ),
    ] = None
    devices: Annotated[
        str | None, option("--devices", metavar="0,1,...", help="These GPUs of this machine, a process for each.")
    ] = None
    threads: Annotated[int | None, option("--threads", min=1, help="CPU threads of each process.")] = None


@dataclass(frozen=True)
class NodeOptions:
    """Several machines, each of which runs the same command with its own --rank."""

    panel: ClassVar[str] = "Machines"

    nnodes: Annotated[int | None, option("--nnodes", min=1, metavar="N", help="How many.")] = None
    master: Annotated[
        str | None, option("--master", metavar="HOST:PORT", help="Address of the first and a port free there.")
    ] = None
    node: Annotated[int | None, option("--rank", min=0, metavar="I", help="Which one this is, from 0.")] = None


@dataclass(frozen=True)
class RunOptions:
    """How a run goes."""

    panel: ClassVar[str] = "Run"

    resume: Annotated[bool, option("--resume", help="Go on from the last checkpoint in the output folder.")] = False
    dry_run: Annotated[bool, option("--dry-run", help="Check the data, estimate the memory, and stop.")] = False
    plot: Annotated[str | None, option("--plot", metavar="OUT.png", help="Draw the loss curve at the end.")] = None
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress; --dry-run still shows its estimate.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def finetune(data: DataOptions, recipe: RecipeOptions, machines: NodeOptions, run: RunOptions) -> None:
    """Teach a model from conversations with pictures and clips, by LoRA or whole."""
    if data.data is None:
        raise UsageError("--data FILE is missing: the conversations to learn from")
    profile = _profile(recipe)
    if data.show_sample is not None:
        _show(profile, local(data.data), data.show_sample)
        return
    if data.output is None:
        raise UsageError("--output DIR is missing: where checkpoints and the result go")
    if run.plot is not None and run.dry_run:
        raise UsageError("--plot draws what --dry-run does not do; leave out one of them")
    if run.plot is not None:
        check_plot(local(run.plot), local(data.output))
    _prepare_training(recipe)
    output = local(data.output)
    from qvl.cli.processes import Nodes, nodes_of_environment

    nodes = Nodes.asked(machines.nnodes, machines.master, machines.node)
    here = _processes_here(profile, recipe, nodes)
    if (here > 1 or recipe.devices or nodes) and _RANK not in os.environ and not run.dry_run:
        complete = _train_in_processes(profile.device, recipe, here, nodes, run, output)
    else:
        from qvl.training.stopping import as_one_of_several

        with as_one_of_several():
            complete = _train(profile, data, run, here * (nodes.count if nodes else nodes_of_environment()))
    if not complete:
        return
    result = output / ("adapter" if profile.training.method == "lora" else "model")
    print(result, flush=True)
    flag = "--adapter" if result.name == "adapter" else "--model"
    render.note(f"ask it: qvl infer {flag} {result} PICTURE -p QUESTION", run.quiet)
    if run.plot is not None:
        from qvl.training.record import plot

        plot(output, local(run.plot))


def _processes_here(profile: Profile, recipe: RecipeOptions, nodes: Nodes | None) -> int:
    """How many there are on this machine: those asked for, or as many as the model has parts."""
    device, is_one = profile.device, ":" in profile.device
    if recipe.devices is not None:
        count = len(recipe.devices.split(","))
        if recipe.nproc not in (None, count):
            raise UsageError(f"--nproc {recipe.nproc} and --devices {recipe.devices}, which are {count}: leave out one")
        if device == "cpu" or is_one:
            raise UsageError(
                f"--devices {recipe.devices} says where to train, and so does device {device}: leave out one"
            )
        return count
    count = recipe.nproc or (profile.tensor_parallel if nodes is None else 1)
    if is_one and count > 1:
        raise UsageError(f"--device {device} is one GPU for {count} processes; --devices names one for each")
    return count


def _train(profile: Profile, data: DataOptions, run: RunOptions, count: int) -> bool:
    """In this process. Whether there is a result, and it is for this one to say so.

    count: of the processes that there would be, which a dry run does not start.
    """
    from qvl.training import finetune as training
    from qvl.training import run as runs
    from qvl.training.stopping import FOLDER

    assert data.data is not None and data.output is not None
    first = os.environ.get(_RANK, "0") == "0"
    watch = Watch(quiet=run.quiet or not first)
    request = runs.Request(
        data=local(data.data),
        output=local(data.output),
        resume=run.resume,
        check_data=data.check_data,
        dry=run.dry_run,
        processes=count if run.dry_run and _RANK not in os.environ else None,
    )
    laid_out = runs.lay_out(profile, request, watch)
    if run.dry_run:
        Watch(quiet=not first).estimated(*runs.estimate_run(laid_out))  # all that there is to show, so with -q as well
        return False
    answer = None
    if profile.training.eval_answers:
        from qvl.runtime.borrowed import answerer

        answer = answerer(profile, laid_out.folder, laid_out.processor, laid_out.placement)
    with watch:
        training.train(laid_out, watch, answer)
    return first and FOLDER not in os.environ  # which is set by the process that started this one and will say it


def _train_in_processes(
    device: str, recipe: RecipeOptions, count: int, nodes: Nodes | None, run: RunOptions, output: Path
) -> bool:
    """In several processes of this machine. Whether there is a result, and it is for this one to say so."""
    from qvl.cli.processes import Processes, log_folder, nodes_of_environment, run_processes
    from qvl.training.alone import refuse_taken

    if nodes is None and nodes_of_environment() == 1:  # else the run that has it may be this one, on another machine
        refuse_taken(output)
    if recipe.devices is not None or (device != "cpu" and _is_for_gpus()):
        from qvl.training.run import check_gpu_count, check_gpus

        if recipe.devices is not None:
            check_gpus(recipe.devices)
        else:
            check_gpu_count(device, count)
    processes = Processes(count, recipe.devices, log_folder(output, nodes), nodes)
    with LiveLine(run.quiet) as line:
        outcomes = run_processes(processes, sys.argv[1:], line)
    return any(outcome.rank == 0 for outcome in outcomes)


def _is_for_gpus() -> bool:
    """Whether Paddle's GPU build is installed. Asking Paddle itself would import it, which takes seconds."""
    try:
        return bool(version("paddlepaddle-gpu"))
    except PackageNotFoundError:
        return False


def _profile(recipe: RecipeOptions) -> Profile:
    profile = load_profile(recipe.profile, recipe.settings)
    if profile.command != "finetune":
        raise UsageError(f"profile {recipe.profile!r} is for qvl {profile.command}; take one such as 2b-lora")
    changes: dict[str, Any] = {
        key: value
        for key, value in (
            ("model", recipe.model),
            ("device", recipe.device),
            ("tensor_parallel", recipe.tensor_parallel),
        )
        if value is not None
    }
    training = {
        key: value
        for key, value in (("max_steps", recipe.max_steps), ("seed", recipe.seed), ("sharding", recipe.sharding))
        if value is not None
    }
    return profile.revised({**changes, "training": training} if training else changes, "flags")


def _prepare_training(recipe: RecipeOptions) -> None:
    """Before Paddle is imported: see that PaddleNLP is there, and set the threads."""
    from importlib.util import find_spec

    from qvl.environment import set_threads

    if find_spec("paddlenlp") is None:
        raise DeviceError(_NEEDS)
    if recipe.threads is not None:
        set_threads(recipe.threads)


def _show(profile: Profile, data: Path, number: int) -> None:
    """Print a sample as the model sees it."""
    from rich.console import Console

    from qvl.training.preview import preview

    Console(soft_wrap=True, highlight=False).print(preview(profile, data, number))
