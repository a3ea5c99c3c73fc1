"""A model that several processes have a part of each: it learns what a whole one does, and its files are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import UsageError
from qvl.model.config import ModelConfig
from qvl.model.part import Part
from qvl.model.shapes import FULL_72B, TINY
from qvl.training.parts import Arrangement
from tests.conftest import CheckpointOf
from tests.training.runs import FULL, LORA, assert_same_run, command, finetune, finetune_here, losses

ROOT = Path(__file__).parents[2]
# With a small epsilon Adam's first steps are signs of gradients, and turn rounding into whole steps.
STEADY = [
    *("--set", "training.adam_epsilon=1e-2", "--set", "training.learning_rate=3e-4"),
    *("--set", "training.micro_batch_size=1"),
]


VISION = [*FULL, "--set", "training.train=[vision, language]"]


def gradients(checkpoint: Path, folder: Path, method: str, size: int) -> dict[str, np.ndarray]:
    out = folder / f"{size}.npz"
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(size), "--log_dir", str(folder / "logs")]
    script = [str(Path(__file__).with_name("parting.py")), str(checkpoint), str(out), method]
    line = [sys.executable, *(launcher if size > 1 else []), *script]
    run = subprocess.run(line, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    # Not the exit status: gloo aborts a process whose neighbour has ended before it.
    assert out.exists(), run.stdout[-2000:] + run.stderr[-2000:]
    with np.load(out) as found:
        return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "method", "size"),
    [("untied", "full", 2), ("tiny", "full", 4), ("tiny", "3", 4), ("untied", "3", 2)],
)
def test_gradients_of_parts_are_those_of_the_whole(
    checkpoint_variant: CheckpointOf, tmp_path: Path, variant: str, method: str, size: int
) -> None:
    """Four parts share two key heads, of which each has but a share of the gradient; an untied head has LoRA too."""
    checkpoint = checkpoint_variant(variant)
    whole, parts = (gradients(checkpoint, tmp_path, method, count) for count in (1, size))
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(parts[name], expected, rtol=0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FULL, VISION, LORA])
def test_parts_learn_what_a_whole_model_does(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: list[str]
) -> None:
    """Some updates have no picture, and the tower no gradient."""
    samples = json.loads((data / "data.json").read_text())
    for sample in samples[1:]:
        sample["messages"][0]["content"] = "What is it?"
        del sample["images"]
    (data / "few-pictures.json").write_text(json.dumps(samples))
    flags = [*recipe, *STEADY, "--max-steps", "4"]
    flags += ["--set", "training.eval_split=0.25", "--set", "training.eval_steps=2"]
    split = ["--threads", "1", "--tensor-parallel", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, more in ((whole, []), (parts, split)):
        run = finetune(data, out, tiny_checkpoint, *flags, *more, file="few-pictures.json")
        assert run.returncode == 0, run.stderr
    assert_same_run(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sharding"), [(FULL, "none"), (FULL, "stage1"), (LORA, "stage1")], ids=["full", "full-stage1", "lora"]
)
def test_two_models_of_two_parts_learn_what_one_whole_model_does(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: list[str], sharding: str
) -> None:
    """Four processes: each model sees half of the samples, and each process has half of a model."""
    flags = [*recipe, *STEADY, "--max-steps", "4", "--sharding", sharding]
    flags += ["--set", "training.eval_split=0.25", "--set", "training.eval_steps=2"]
    whole, mixed = tmp_path / "whole", tmp_path / "mixed"
    for out, more in ((whole, []), (mixed, ["--threads", "1", "--nproc", "4", "--tensor-parallel", "2"])):
        run = finetune(data, out, tiny_checkpoint, *flags, *more)
        assert run.returncode == 0, run.stderr
    assert_same_run(mixed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "order"), [(LORA, ("2", "1")), (FULL, ("1", "2"))])
def test_a_run_goes_on_in_another_number_of_parts(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: list[str], order: tuple[str, str]
) -> None:
    flags = [*recipe, *STEADY, "--max-steps", "6", "--threads", "1", "--set", "training.save_steps=3"]
    flags += ["--set", "training.save_total_limit=5"]
    once, out = tmp_path / "once", tmp_path / "out"
    first = finetune(data, once, tiny_checkpoint, *flags, "--tensor-parallel", order[0])
    assert first.returncode == 0, first.stderr
    out.mkdir()
    (once / "checkpoint-3").rename(out / "checkpoint-3")
    for name in ("run.json", "metrics.jsonl"):
        (out / name).write_bytes((once / name).read_bytes())
    then = finetune(data, out, tiny_checkpoint, *flags, "--tensor-parallel", order[1], "--resume")
    assert then.returncode == 0 and "resuming after update 3" in then.stderr, then.stderr
    np.testing.assert_allclose(losses(out), losses(once), rtol=1e-5)


def test_what_cannot_be_shared_out_is_refused() -> None:
    Arrangement(5, 8, 4).check(TINY)
    assert Arrangement(5, 8, 4).replica == 1 and Arrangement(5, 8, 4).part() == Part(1, 4)
    with pytest.raises(UsageError, match="6 devices cannot be shared out to models of 4"):
        Arrangement(0, 6, 4).check(TINY)
    with pytest.raises(UsageError, match="cannot be split in 3 equal parts; 2, 4"):
        Arrangement(0, 3, 3).check(TINY)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nproc", "3", "--tensor-parallel", "2"], "3 devices cannot be shared out to models of 2"),
        (["--tensor-parallel", "2", "--set", "training.eval_answers=2"], "cannot answer while it learns"),
    ],
)
def test_refusals_come_in_one_line(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    run = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *LORA, *flags, "--dry-run")
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1


def test_a_dry_run_shows_a_part_without_starting_the_others(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    line = ["finetune", "--data", str(data / "data.json"), "-o", str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    line += [*FULL, "--dry-run", "--tensor-parallel", "4"]
    run = subprocess.run(command(*line), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "million parameters learn" in run.stderr
    assert not (tmp_path / "out" / "logs").exists()


def test_the_parts_of_a_large_model_learn_every_number_once() -> None:
    config: ModelConfig = FULL_72B
    for name, shape in (
        ("model.layers.3.self_attn.k_proj.weight", (8192, 1024)),
        ("model.layers.3.self_attn.q_proj.lora_A", (8192, 16)),
        ("model.layers.3.self_attn.k_proj.lora_B", (16, 1024)),
        ("model.layers.3.mlp.down_proj.lora_A", (29568, 16)),
        ("model.norm.weight", (8192,)),
        ("lm_head.weight", (8192, 152064)),
    ):
        for size in (1, 8, 16, 64):
            parts = [Part(rank, size) for rank in range(size)]
            held = sum(part.held(name, shape, config) / part.copies(name, config) for part in parts)
            assert held == np.prod(shape), (name, size)
    assert Part(0, 16).is_partly_learnt("model.layers.0.self_attn.v_proj.weight", config)
    assert not Part(0, 8).is_partly_learnt("model.layers.0.self_attn.v_proj.weight", config)
    assert Part(0, 2).is_partly_learnt("model.layers.0.mlp.up_proj.lora_A", config)
    assert not Part(0, 2).is_partly_learnt("model.layers.0.mlp.up_proj.lora_B", config)
    assert not Part(0, 2).is_partly_learnt("model.layers.0.input_layernorm.weight", config)
