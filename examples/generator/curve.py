"""`python -m examples.generator.curve OUT.png RUN [RUN ...]`: the loss of training runs that follow each other."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot looks for a screen

from matplotlib import pyplot

_MEAN_OVER = 50  # updates: single ones say more about their samples than about the model


def means(run: Path, over: int = _MEAN_OVER) -> list[tuple[int, float]]:
    """Updates and the loss per supervised token of the last `over` before each, from the run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # A run that went on where it was stopped has some updates twice; the later ones count.
    records = list({record["step"]: record for record in map(json.loads, lines)}.values())
    points = []
    for first, end in pairwise([*range(0, len(records), over), len(records)]):
        part = records[first:end]
        tokens = sum(record["supervised_tokens"] for record in part)
        points.append((part[-1]["step"], sum(record["loss"] * record["supervised_tokens"] for record in part) / tokens))
    return points


def draw(runs: Sequence[Path], out: Path) -> None:
    """One line a run, behind each other; also the loss on held-out samples."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    before = 0
    for run in runs:
        points = means(run)
        axes.plot([before + step for step, _ in points], [loss for _, loss in points], label=run.name)
        if (run / "eval.jsonl").exists():
            judged = [json.loads(line) for line in (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
            axes.plot([before + record["step"] for record in judged], [record["loss"] for record in judged], "k.")
        before += points[-1][0]
    axes.set(xlabel="update", ylabel="loss per token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.generator.curve", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    options = parser.parse_args(arguments)
    draw(options.runs, options.out)


if __name__ == "__main__":
    main()
