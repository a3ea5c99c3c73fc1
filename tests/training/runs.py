"""Runs of `qvl finetune` as users start them, on a tiny model and eight pictures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from qvl.cli import main

ANSWERS = (
    "A red cat.",
    "Two dogs run.",
    "Nothing at all",
    "seven",
    "The sea, and a boat.",
    "a tall tree",
    "It is a house",
    "green",
)
FAST = ["--set", "training.batch_size=4", "--set", "training.micro_batch_size=2", "--set", "training.recompute=false"]
FULL = ["--profile", "2b-full", "--set", "training.learning_rate=3e-3", *FAST]
LORA = ["--profile", "2b-lora", "--set", "training.learning_rate=3e-3", *FAST]


def write_data(folder: Path, file: str, answers: tuple[str, ...]) -> None:
    records = []
    for number, answer in enumerate(answers):
        noise(number).save(folder / f"{number}.png")
        messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": answer}]
        records.append({"messages": messages, "images": [f"{number}.png"]})
    (folder / file).write_text(json.dumps(records))


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((112, 84), Image.Resampling.NEAREST)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qvl.cli", *arguments]


def finetune_here(
    capfd: pytest.CaptureFixture[str],
    data: Path,
    out: Path,
    model: str | Path,
    *arguments: str,
    file: str = "data.json",
) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what ends before anything is trained: to start a program takes many seconds."""
    line = ["finetune", "--data", str(data / file), "-o", str(out), "--model", str(model), *arguments]
    capfd.readouterr()
    code = main(line)
    said = capfd.readouterr()
    return subprocess.CompletedProcess(line, code, said.out, said.err)


def finetune(
    data: Path, out: Path, model: Path, *arguments: str, file: str = "data.json"
) -> subprocess.CompletedProcess[str]:
    line = command("finetune", "--data", str(data / file), "-o", str(out), "--model", str(model), *arguments)
    return subprocess.run(line, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records(out)]


def wait_for_steps(out: Path, steps: int, program: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and program.poll() is None:
        if (out / "metrics.jsonl").is_file() and [s for s, _ in losses(out) if s >= steps]:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {steps}: {program.communicate()[1][-2000:]!r}")


def assert_same_run(got: Path, expected: Path) -> None:
    """Of two folders of runs with samples held out: losses, norms, tokens and results, up to rounding."""
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        figures = ([record[key] for record in records(out)] for out in (got, expected))
        np.testing.assert_allclose(*figures, rtol=tolerance)
    for key in ("tokens", "supervised_tokens"):
        assert [record[key] for record in records(got)] == [record[key] for record in records(expected)]
    lines = [[json.loads(line)["loss"] for line in (out / "eval.jsonl").open()] for out in (got, expected)]
    np.testing.assert_allclose(*lines, rtol=1e-5)
    (result,) = (path.name for path in expected.iterdir() if path.name in ("adapter", "model"))
    for path in (expected / result).iterdir():
        assert (got / result / path.name).exists()
        if path.suffix == ".safetensors":
            wanted, found = load_file(path), load_file(got / result / path.name)
            assert wanted.keys() == found.keys()
            for name, values in wanted.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-5, err_msg=name)
