"""The screen of `qvl doctor`: 80 columns, in colour on a terminal, plain anywhere else."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.doctor.records import Fit, Gpu, Report
    from qvl.machine import Cpu

GIB = 1024**3
_MIB = 1024**2
_WIDTH = 80
_LABEL = 11
_NAMES = 13

Piece = tuple[str, str]  # text and its style
Line = Sequence[Piece]


def show(report: Report, *, only_problems: bool = False) -> None:
    """Print it. only_problems: the lines of those alone, nothing where all is well."""
    lines = list(_problems(report)) if only_problems else list(_screen(report))
    if not lines:
        return
    if sys.stdout.isatty():
        _in_colour(lines)
    else:
        print("\n".join("".join(text for text, _ in line).rstrip() for line in lines), flush=True)


def _in_colour(lines: Iterable[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)  # which knows NO_COLOR and odd terminals
    for line in lines:
        console.print(Text.assemble(*line))
    sys.stdout.flush()


def _screen(report: Report) -> Iterator[Line]:
    versions = dict(report.versions)
    title = f"qvl {versions.pop('qvl')} on Python {versions.pop('python')}, {report.system}"
    yield [(title, "bold")]
    yield from _entry("versions", (f"{name} {version or '(not installed)'}" for name, version in versions.items()))
    yield from _machine(report)
    yield from _paddle(report)
    yield from _ops(report)
    yield from _fits(report)
    yield from _training(report)
    yield from _models(report)
    for remark in report.remarks:
        yield from _labelled("remark", remark, "yellow")
    yield from _problems(report)
    if report.ok:
        asked = report.asked["profile"]
        words = f"profile {asked} will work here" if asked else "everything that was asked for will work"
        yield [("well".ljust(_LABEL), "bold green"), (words, "")]


def _problems(report: Report) -> Iterator[Line]:
    for problem in report.problems:
        yield from _labelled("problem", problem, "bold red")


def _machine(report: Report) -> Iterator[Line]:
    yield from _entry("processor", _processor(report.cpu))
    memory = report.memory
    swap = [f"swap {_gib(memory.swap)}"] if memory.swap else []
    limit = [f"limited to {_gib(memory.limit)} by the container"] if memory.limit is not None else []
    yield from _entry("memory", [_gib(memory.total), *limit, f"{_gib(memory.free)} free", *swap])
    if not report.gpus:
        yield from _entry("GPU", ["none here"])
    for gpu in report.gpus:
        yield from _entry(f"GPU {gpu.index}", _gpu(gpu))
    count = report.threads.count
    yield from _entry("threads", [report.threads.reason if count is None else f"{count}: {report.threads.reason}"])


def _processor(cpu: Cpu) -> list[str]:
    cores = f"{cpu.cores} core{'' if cpu.cores == 1 else 's'}"
    words = [cpu.model, cores if cpu.threads == cpu.cores else f"{cores} with {cpu.threads} threads"]
    if cpu.allowed < cpu.threads:
        words.append(f"{cpu.allowed} of the threads for this process")
    if cpu.quota is not None:
        words.append(f"the container grants the time of {cpu.quota:g}")
    if cpu.extensions is None:
        return [*words, "instructions not known"]
    return [*words, " ".join(cpu.extensions) or "no vector instructions that matter"]


def _gpu(gpu: Gpu) -> list[str]:
    words = [gpu.name, _gib(gpu.memory) if gpu.memory else "memory not known"]
    if gpu.memory and gpu.free is not None:
        words.append(f"{_gib(gpu.free)} free")
    if gpu.capability:
        words.append(f"compute capability {gpu.capability}")
    return [*words, f"driver {gpu.driver}"] if gpu.driver else words


def _paddle(report: Report) -> Iterator[Line]:
    paddle = report.paddle
    if paddle.version:
        build = f"built for CUDA {paddle.cuda}, cuDNN {paddle.cudnn}" if paddle.cuda else "built for CPUs"
        runs = [f"a run gets {paddle.device} in {paddle.dtype}"] if paddle.device else []
        yield from _entry("Paddle", [f"{paddle.version} {build}", *runs])
        yield from _entry("flags", (f"{name.removeprefix('FLAGS_')}={value}" for name, value in paddle.flags.items()))
    else:
        yield from _entry("Paddle", ["does not run here"])
    if paddle.prepared:
        yield from _entry("qvl sets", (f"{name}={value}" for name, value in paddle.prepared.items()))
    if report.environment:
        yield from _entry("variables", (f"{name}={value}" for name, value in report.environment.items()))


def _ops(report: Report) -> Iterator[Line]:
    ops = report.ops
    if not ops.ops:
        yield from _entry("ops", ["not known without Paddle"])
        return
    if ops.built:
        uses = f", using {' '.join(ops.instructions)}" if ops.instructions else ""
        yield from _entry("ops", [f"native ones are built{uses}"])
    else:
        yield from _entry("ops", [f"native: no, {ops.reason}"])
    if report.gpus or report.paddle.cuda:  # elsewhere they are of no interest
        there = f"native for a GPU: no, {ops.gpu_reason}" if ops.gpu_reason else "native ones for a GPU are built"
        steps = f"decode steps one by one: {ops.graphs}" if ops.graphs else "decode steps in CUDA graphs"
        yield from _entry("", [there, steps])
    groups: dict[tuple[str, str], list[str]] = {}
    for op in ops.ops:
        reason = "" if op.reason == ops.reason else op.reason
        groups.setdefault((op.body, reason), []).append(op.name)
    for (body, reason), names in groups.items():
        yield from _entry("", [f"{body}: {', '.join(names)}{f' ({reason})' if reason else ''}"])


def _fits(report: Report) -> Iterator[Line]:
    """A table for each device, the one that a run gets first."""
    for device in dict.fromkeys(fit.device for fit in report.fits):
        fits = [fit for fit in report.fits if fit.device == device]
        free, size = _number(fits[0].free), _number(fits[0].size)
        yield from _labelled("fits", f"on {device}, GiB: {free} of {size} are free", "bold")
        yield [(" " * _LABEL + _columns("PROFILE", "AS", "WEIGHT", "CACHE", "WORK", "TOTAL") + "FITS", "dim")]
        for fit in fits:
            words, style = _verdict(fit)
            names = ", ".join(fit.profiles)
            work = max(fit.vision, fit.prefill)
            numbers = map(_number, (fit.weights, fit.cache, work, fit.total))
            kind = fit.dtype if fit.quantize == "none" else fit.quantize
            mark = ">" if fit.asked else ""
            yield [(mark.rjust(_LABEL - 1) + " ", "bold"), (_columns(names, kind, *numbers), ""), (words, style)]
    if report.fits:
        yield from _entry("", ["total: with a prompt of the whole context; needs: for one picture"])
        if any(fit.verdict == "busy" for fit in report.fits):
            yield from _entry("", ["busy: not in what is free now, but in all there is"])


def _verdict(fit: Fit) -> Piece:
    if fit.verdict == "full":
        return _context(fit.context), "green"
    if fit.verdict == "short":
        return _context(fit.usable_context), "yellow"
    needs = f"needs {_number(fit.least)}"
    return (f"busy, {needs}", "yellow") if fit.verdict == "busy" else (f"no, {needs}", "red")


def _context(tokens: int) -> str:
    return f"{tokens} tokens"


def _columns(name: str, kind: str, *numbers: str) -> str:
    short = name if len(name) <= _NAMES else f"{name[: _NAMES - 1]}+"
    return f"{short:<{_NAMES}} {kind:<8}" + "".join(f"{number:>7}" for number in numbers) + "  "


def _training(report: Report) -> Iterator[Line]:
    need = report.training
    if need is None:
        return
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    sizes = [f"{name} {_number(getattr(need, name))}" for name in parts]
    total = f"{_gib(need.total)} of {_gib(need.free)} free {'fit' if need.fits else 'do not fit'}"
    yield from _entry("training", [f"{need.profile} on {need.device} in {need.dtype}", total, *sizes])


def _models(report: Report) -> Iterator[Line]:
    store = report.store
    free = f", {_gib(store.free)} free" if store.free is not None else ""
    yield from _entry("models", [f"{store.folder or 'no folder for them'}{free}"])
    if not report.models:
        yield from _entry("", ["none here yet"])
    for model in report.models:
        style = {"verified": "green", "unverified": ""}.get(model.state, "red")
        kept = "" if model.keeper == "qvl" else f", kept by {model.keeper}"
        yield [
            (" " * _LABEL + f"{model.id:<36} {_gib(model.bytes):>10}  ", ""),
            (model.state, style),
            (kept, "dim"),
        ]


def _entry(label: str, items: Iterable[str]) -> Iterator[Line]:
    return _labelled(label, ", ".join(items), "bold")


def _labelled(label: str, text: str, style: str) -> Iterator[Line]:
    """Text behind a label, folded under itself."""
    folded = textwrap.wrap(text, _WIDTH - _LABEL, break_on_hyphens=False) or [""]
    for number, line in enumerate(folded):
        yield [((label if number == 0 else "").ljust(_LABEL), style), (line, "")]


def _number(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB or not size else f"{size / GIB:.2f}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB or not size else f"{size / _MIB:.1f} MiB"
