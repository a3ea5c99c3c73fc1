"""What a run says about itself: `metrics.jsonl`, one object a step, and the curve drawn from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvl.errors import UsageError
from qvl.training.homes import import_visualdl

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One update. loss: before the update, the mean over all its supervised tokens. seconds: of the whole update."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    supervised_tokens: int
    tokens: int
    epoch: float
    seconds: float


class EvaluationFile:
    """Appends the held-out loss of a step to `eval.jsonl`, and knows the best so far.

    Every process of a run has one and comes to the same view of what is best; one of them writes. judged: the steps
    that it had when the run went on.
    """

    def __init__(self, run: Path, start_step: int, *, writes: bool) -> None:
        self.path, self._writes = run / "eval.jsonl", writes
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= start_step]
        if writes:
            _replace(self.path, kept)
        records = [json.loads(line) for line in kept]
        self.judged = frozenset(int(record["step"]) for record in records)
        losses = [(record["loss"], record["step"]) for record in records if math.isfinite(record["loss"])]
        best: tuple[float, int] = min(losses, default=(float("inf"), 0))
        self.best_loss, self.best_step = best

    def write(self, step: int, loss: float, answers: Sequence[Mapping[str, str]] = ()) -> bool:
        """Whether it is the best so far. answers: what the model made of some of the samples, if it was asked."""
        record: dict[str, Any] = {"step": step, "loss": loss} | ({"answers": list(answers)} if answers else {})
        if self._writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not loss < self.best_loss:  # a NaN is not
            return False
        self.best_loss, self.best_step = loss, step
        return True


class MetricsFile:
    """Appends records. After a resume, records past the checkpoint are dropped: they will come again."""

    def __init__(self, run: Path, start_step: int) -> None:
        self.path = run / FILE
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= start_step]
        _replace(self.path, kept)

    def write(self, record: StepRecord) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


class ScalarLog:
    """The same for VisualDL: `visualdl --logdir RUN/visualdl`. It comes with PaddleNLP."""

    def __init__(self, run: Path) -> None:
        self._writer = import_visualdl().LogWriter(logdir=str(run / "visualdl"))

    def write(self, record: StepRecord) -> None:
        for name in ("loss", "learning_rate", "grad_norm"):
            self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def close(self) -> None:
        self._writer.close()


def read_records(run: Path) -> list[StepRecord]:
    """All records of a run, in order."""
    return [StepRecord(**json.loads(line)) for line in _lines(run / FILE)]


def _replace(path: Path, lines: list[str]) -> None:
    """At once, so that whoever reads meanwhile sees the old or the new."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def _lines(path: Path) -> Iterator[str]:
    """Whole lines; one that a kill cut short is left out."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


def plot(run: Path, out: Path) -> None:
    """Draw the loss curve of a run as a picture. Raises UsageError when it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_records(run)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot([record.step for record in records], [record.loss for record in records], linewidth=1)
    axes.set(xlabel="update", ylabel="loss", title=run.name)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        pyplot.close(figure)
