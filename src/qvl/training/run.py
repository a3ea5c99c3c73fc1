"""A run laid out: the data read and planned, the model looked at, nothing large loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from qvl import environment

environment.prepare()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import paddle  # noqa: E402

from qvl.errors import DeviceError, UsageError  # noqa: E402
from qvl.hub.locate import locate  # noqa: E402
from qvl.model.config import ModelConfig  # noqa: E402
from qvl.model.device import Placement, choose, own_device, place  # noqa: E402
from qvl.model.part import Part  # noqa: E402
from qvl.model.quantization import refuse_quantised  # noqa: E402
from qvl.processing.processor import Processor  # noqa: E402
from qvl.profile import Profile  # noqa: E402
from qvl.profile_training import TrainingOptions  # noqa: E402
from qvl.reading import load_processor  # noqa: E402
from qvl.training.alone import refuse_taken  # noqa: E402
from qvl.training.checkpoints import check_writable  # noqa: E402
from qvl.training.dataset import DataSet, load_dataset  # noqa: E402
from qvl.training.description import previous  # noqa: E402
from qvl.training.estimate import Estimate, Size, estimate, largest_share  # noqa: E402
from qvl.training.examples import ExampleOptions, Prepared, prepare  # noqa: E402
from qvl.training.held_out import hold_out  # noqa: E402
from qvl.training.model import part_of  # noqa: E402
from qvl.training.parts import Arrangement, arrangement  # noqa: E402
from qvl.training.plan import Plan  # noqa: E402
from qvl.training.record import StepRecord  # noqa: E402
from qvl.training.refusals import refuse_untrainable  # noqa: E402
from qvl.training.shards import Shards, fetched_at_once, own_stage, shared_rows  # noqa: E402


@dataclass(frozen=True)
class Request:
    """What a run is asked for beside its profile.

    check_data: decode every sample before training starts. dry: nothing will be written.
    processes: how many the run is laid out for, where those that were started are not meant.
    """

    data: Path
    output: Path
    resume: bool = False
    check_data: bool = False
    dry: bool = False
    processes: int | None = None


@dataclass(frozen=True)
class Answered:
    """A held-out sample, the reply it has and the one that the model gives. sample: its file and index."""

    sample: str
    expected: str
    answer: str


class Observer(Protocol):
    """Who watches a run."""

    def prepared(self, prepared: Prepared) -> None: ...

    def estimated(self, need: Estimate, learning: int, total: int) -> None: ...

    def started(self, steps: int, start: int) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def evaluated(self, step: int, loss: float, best: bool) -> None: ...

    def answered(self, answers: Sequence[Answered]) -> None: ...


@dataclass
class Run:
    """A run that is laid out: everything is known but nothing large is loaded."""

    profile: Profile
    request: Request
    folder: Path
    config: ModelConfig
    processor: Processor
    placement: Placement
    dataset: DataSet
    prepared: Prepared
    held_out: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    arrangement: Arrangement
    plan: Plan
    steps: int

    @property
    def options(self) -> TrainingOptions:
        return self.profile.training


def check_gpus(numbers: str) -> None:
    """See that the GPUs of a list such as "0,1" are there. Raises UsageError for another form, and DeviceError."""
    chosen = [text.strip() for text in numbers.split(",")]
    if not all(number.isdecimal() for number in chosen) or len(set(chosen)) < len(chosen):
        raise UsageError(f"--devices {numbers}: numbers of GPUs such as 0,1 were expected")
    count = paddle.device.cuda.device_count()
    missing = [number for number in chosen if int(number) >= count]
    if missing:
        raise DeviceError(f"--devices {numbers}: Paddle sees {count} GPUs here, none with the number {missing[0]}")


def check_gpu_count(device: str, count: int) -> None:
    """See that so many processes of this machine have a GPU each, unless they run on a CPU. Raises DeviceError."""
    if device == "cpu" or not paddle.device.is_compiled_with_cuda():
        return  # asked for GPUs that this Paddle has nothing for, each process says so
    gpus = paddle.device.cuda.device_count()
    if gpus < count and (gpus or device != "auto"):
        raise DeviceError(f"{count} processes need a GPU each, and Paddle sees {gpus} here; see --nproc and --nnodes")


def lay_out(profile: Profile, request: Request, observer: Observer) -> Run:
    """Read the data and the small files of the model, and plan every update.

    Raises QvlError: DataError for a bad sample, UsageError, also when another run has the output folder,
    CheckpointError for one that cannot be written.
    """
    options = profile.training
    refuse_untrainable(profile)
    placement = _place(profile)
    folder = locate(profile.model)
    config = ModelConfig.from_folder(folder)
    refuse_quantised(folder, "fine-tuning")
    arranged = arrangement(profile.tensor_parallel, request.processes)
    arranged.check(config)
    processor = load_processor(folder, config, profile)
    if not request.dry:
        check_writable(request.output, 0)
        if paddle.distributed.get_rank() == 0:  # to which the folder of a run belongs
            refuse_taken(request.output)
    request = _as_begun(request, options)
    dataset = load_dataset(request.data, seed=options.seed)
    limits = ExampleOptions(
        max_length=min(options.max_length, config.max_position_embeddings),
        on_long=options.on_long,
        on_bad_sample=options.on_bad_sample,
        check="full" if request.check_data else "headers",
    )
    prepared = prepare(dataset, processor, limits, max(1, options.workers))
    observer.prepared(prepared)
    keys = [dataset.key(int(index)) for index in prepared.indices]
    held_out, trained = hold_out(keys, options.eval_split, options.seed)
    if not len(trained):
        raise UsageError(f"training.eval_split={options.eval_split} leaves nothing to learn from")
    plan = Plan(
        prepared.tokens[trained],
        prepared.supervised_tokens[trained],
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        ranks=arranged.replicas,
        seed=options.seed,
        balance=options.balance_lengths,
    )
    steps = options.max_steps or plan.steps(options.epochs)
    return Run(
        profile,
        request,
        folder,
        config,
        processor,
        placement,
        dataset,
        prepared,
        held_out,
        trained,
        arranged,
        plan,
        steps,
    )


def _as_begun(request: Request, options: TrainingOptions) -> Request:
    """What is asked for, with every pixel read where the run that is resumed did: what it skipped, this has to skip."""
    if request.resume and options.on_bad_sample == "skip" and (previous(request.output) or {}).get("check_data"):
        return replace(request, check_data=True)
    return request


def _place(profile: Profile) -> Placement:
    """The device and dtype of training. Raises UsageError and DeviceError."""
    device = own_device(profile.device)
    if profile.dtype != "float32":
        found = choose(device, "float32").device
        if found.startswith("gpu") and not paddle.amp.is_bfloat16_supported(found):  # float16 is no way out here
            raise DeviceError(f"{found} has no bfloat16; train with --set dtype=float32")
    return place(device, profile.dtype)


def estimate_run(run: Run) -> tuple[Estimate, int, int]:
    """Memory of a run by parts, parameters that learn, and parameters in all. Loads nothing."""
    tokens = max(run.prepared.tokens) * run.options.micro_batch_size
    arranged = run.arrangement
    return estimate_training(run.config, run.options, run.placement.dtype, tokens, arranged.processes, arranged.parts)


def estimate_training(
    config: ModelConfig, options: TrainingOptions, dtype: str, tokens: int, devices: int = 1, parts: int = 1
) -> tuple[Estimate, int, int]:
    """The same for micro-batches of at most `tokens`, before any data is known.

    The memory is that of one device of `devices`, each `parts` of which have a model together; the numbers of
    parameters are of the whole model.
    """
    from qvl.model.weights import empty_model

    model = empty_model(config, dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if options.method == "full":
        learning = {name: shape for name, shape in shapes.items() if part_of(name) in options.train}
    else:
        from qvl.training.adapters import lora_modules

        learning = {
            f"{name}.{kind}": shape
            for name in lora_modules(model, options.lora.targets, options.lora.parts)
            for kind, shape in _factor_shapes(shapes[f"{name}.weight"], options.lora.rank)
        }
    stage = own_stage(options) if devices > 1 else 0
    rows = shared_rows(shapes, devices) if stage else {}
    part = Shards(0, devices, rows=rows) if stage else Part(0, parts)
    matrices = {name: math.prod(shapes[name]) for name in rows}
    fetched = {2: sum(matrices.values()), 3: fetched_at_once(shapes, rows)}
    held = [part.held(name, shape, config) for name, shape in learning.items()]
    size = Size(
        weights=sum(part.held(name, shape, config) for name, shape in shapes.items()),
        learning=sum(held),
        held=largest_share(held, devices // parts if options.sharding != "none" and not stage else 1),
        fetched=fetched.get(stage, 0),
        exchanged=max((count for name, count in matrices.items() if name in learning), default=0),
        tokens=tokens,
        patches=tokens * config.vision_config.spatial_merge_size**2,
        dtype=dtype,
        parts=parts,
    )
    return estimate(config, options, size), _numbers(learning.values()), _numbers(shapes.values())


def _factor_shapes(weight: tuple[int, ...], rank: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("lora_A", (weight[0], rank)), ("lora_B", (rank, weight[1]))


def _numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)
