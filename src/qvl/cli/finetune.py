"""`qvl finetune`: teach a model from conversations with pictures and clips."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from qvl.cli import render
from qvl.cli.options import flattened, option
from qvl.errors import DeviceError, QvlError, UsageError
from qvl.profile import Profile, load_profile

if TYPE_CHECKING:
    from qvl.training.estimate import Estimate
    from qvl.training.examples import Prepared
    from qvl.training.record import StepRecord

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

    profile: Annotated[str, option("--profile", metavar="NAME|FILE", help="A profile for finetune.")] = "2b-lora"
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
    nproc: Annotated[int, option("--nproc", min=1, help="Processes on this machine, one for each GPU.")] = 1
    devices: Annotated[
        str | None, option("--devices", metavar="0,1,...", help="These GPUs of this machine, a process for each.")
    ] = None
    threads: Annotated[int | None, option("--threads", min=1, help="CPU threads of each process.")] = None


@dataclass(frozen=True)
class RunOptions:
    """How a run goes."""

    panel: ClassVar[str] = "Run"

    resume: Annotated[bool, option("--resume", help="Go on from the last checkpoint in the output folder.")] = False
    dry_run: Annotated[bool, option("--dry-run", help="Check the data, estimate the memory, and stop.")] = False
    plot: Annotated[str | None, option("--plot", metavar="OUT.png", help="Draw the loss curve at the end.")] = None
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def finetune(data: DataOptions, recipe: RecipeOptions, run: RunOptions) -> None:
    """Teach a model from conversations with pictures and clips, by LoRA or whole."""
    if data.data is None:
        raise UsageError("--data FILE is missing: the conversations to learn from")
    if data.output is None and data.show_sample is None:
        raise UsageError("--output DIR is missing: where checkpoints and the result go")
    if (recipe.nproc > 1 or recipe.devices) and _RANK not in os.environ:
        raise typer.Exit(_launch(recipe, Path(data.output or ".")))
    profile = _profile(recipe)
    if data.show_sample is not None:
        _show(profile, Path(data.data), data.show_sample)
        return
    _prepare_training(recipe)
    from qvl.training import finetune as training
    from qvl.training import run as runs

    assert data.output is not None
    first = os.environ.get(_RANK, "0") == "0"
    watch = Watch(quiet=run.quiet or not first)
    request = runs.Request(
        data=Path(data.data), output=Path(data.output), resume=run.resume, check_data=data.check_data
    )
    laid_out = runs.lay_out(profile, request, watch)
    if run.dry_run:
        watch.estimated(*runs.estimate_run(laid_out))
        return
    with watch:
        result = training.train(laid_out, watch)
    if not first:
        return
    if run.plot is not None:
        from qvl.training.record import plot

        plot(request.output, Path(run.plot))
    print(result)
    flag = "--adapter" if result.name == "adapter" else "--model"
    render.note(f"ask it: qvl infer {flag} {result} PICTURE -p QUESTION", run.quiet)


class Watch:
    """Shows a run on stderr: a line of figures that stays in place on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._steps = self._start = 0
        self._began = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def prepared(self, prepared: Prepared) -> None:
        for line in prepared.report.lines():
            render.note(line, self._quiet)

    def estimated(self, need: Estimate, learning: int, total: int) -> None:
        parts = ", ".join(f"{part.name} {getattr(need, part.name) / 2**30:.2f}" for part in dataclasses.fields(need))
        render.note(f"{learning / 1e6:.2f} of {total / 1e6:.2f} million parameters learn", self._quiet)
        render.note(f"memory of one device, about {need.total / 2**30:.2f} GiB: {parts}", self._quiet)

    def started(self, steps: int, start: int) -> None:
        self._steps, self._start, self._began = steps, start, time.monotonic()
        if start:
            render.note(f"resuming after update {start} of {steps}", self._quiet)
        if render.is_live(self._quiet):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        render.note(f"update {step}: held-out loss {loss:.4f}{', the best so far' if best else ''}", self._quiet)

    def step(self, record: StepRecord) -> None:
        if self._quiet:
            return
        done = record.step - self._start
        left = (time.monotonic() - self._began) / done * (self._steps - record.step)
        line = (
            f"update {record.step}/{self._steps}  loss {record.loss:.4f}  lr {record.learning_rate:.2e}  "
            f"grad {record.grad_norm:.2f}  {record.tokens / record.seconds:.0f} tokens/s  left {_clock(left)}"
        )
        if self._live is not None:
            self._live.update(line, refresh=True)
        elif record.step == self._steps or done == 1 or done % max(1, (self._steps - self._start) // 20) == 0:
            render.note(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _profile(recipe: RecipeOptions) -> Profile:
    profile = load_profile(recipe.profile, recipe.settings)
    if profile.command != "finetune":
        raise UsageError(f"profile {recipe.profile!r} is for qvl {profile.command}; take one such as 2b-lora")
    changes: dict[str, Any] = {
        key: value for key, value in (("model", recipe.model), ("device", recipe.device)) if value is not None
    }
    training = {
        key: value for key, value in (("max_steps", recipe.max_steps), ("seed", recipe.seed)) if value is not None
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


def _launch(recipe: RecipeOptions, output: Path) -> int:
    """Run this command again in several processes; an error in one stops all, and is shown."""
    from qvl.environment import physical_cores

    entry = Path(__file__).with_name("__main__.py")
    logs = output / "logs"
    command = [sys.executable, "-m", "paddle.distributed.launch"]
    command += ["--devices", recipe.devices] if recipe.devices else ["--nproc_per_node", str(recipe.nproc)]
    command += ["--log_level", "ERROR", "--log_dir", str(logs), str(entry), *sys.argv[1:]]
    # The launcher imports Paddle itself, which warns of more than one thread; its processes share the cores.
    share = str(max(1, physical_cores() // (len(recipe.devices.split(",")) if recipe.devices else recipe.nproc)))
    quiet = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment = {"QVL_THREADS": share, **os.environ, **quiet}
    # In a session of its own: a Ctrl-C would otherwise reach the processes twice, by the terminal and by the launcher.
    with subprocess.Popen(command, env=environment, start_new_session=True) as program:
        received: list[int] = []

        def forward(number: int, _frame: object) -> None:
            received.append(number)
            program.terminate()

        before = {kind: signal.signal(kind, forward) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = program.wait()
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
    if received:
        render.note(f"stopped by {signal.Signals(received[0]).name}; --resume goes on from here")
        return 128 + received[0]
    if code:
        raise QvlError(f"a process failed with exit code {code}; its output is in {logs}")
    return code
