"""Matrices that processes share out: they learn what one process does, and their files are whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.model.part import Cut
from qvl.model.shapes import FULL_7B, TINY
from qvl.model.weights import empty_model
from qvl.planning.training import plan_training
from qvl.profile_training import LoraOptions, TrainingOptions
from qvl.training.run import estimate_training
from qvl.training.shards import Shards, own_stage, share_out, whole_shapes
from tests.conftest import CheckpointOf
from tests.training.runs import FULL, LORA, assert_same_run, finetune, finetune_here, losses

# With a small epsilon Adam's first steps are signs of gradients, and turn rounding into whole steps.
STEADY = ["--set", "training.adam_epsilon=1e-2", "--set", "training.learning_rate=3e-4"]
STEADY += ["--set", "training.micro_batch_size=1"]
VISION = [*FULL, "--set", "training.train=[vision, merger, language]"]
HEAD = [*LORA, "--set", "training.lora.targets=[q_proj, lm_head]"]
TWO = ["--nproc", "2", "--threads", "1"]


def sharded(stage: int) -> list[str]:
    return ["--sharding", f"stage{stage}", "--set", "training.recompute=true"]


def few_pictures(data: Path) -> str:
    """Some updates have a picture in one process alone, or in none."""
    samples = json.loads((data / "data.json").read_text())
    for sample in samples[1:]:
        sample["messages"][0]["content"] = "What is it?"
        del sample["images"]
    (data / "few-pictures.json").write_text(json.dumps(samples))
    return "few-pictures.json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "stage", "variant"),
    [
        (FULL, 2, "tiny"),
        (FULL, 3, "untied"),
        (VISION, 2, "untied"),
        (VISION, 3, "tiny"),
        (LORA, 3, "tiny"),
        (HEAD, 3, "untied"),
    ],
)
def test_processes_learn_what_one_does(
    data: Path, checkpoint_variant: CheckpointOf, tmp_path: Path, recipe: list[str], stage: int, variant: str
) -> None:
    checkpoint = checkpoint_variant(variant)
    flags = [*recipe, *STEADY, *sharded(stage), "--max-steps", "4"]
    flags += ["--set", "training.eval_split=0.25", "--set", "training.eval_steps=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for out, more in ((one, []), (two, TWO)):
        run = finetune(data, out, checkpoint, *flags, *more, file=few_pictures(data))
        assert run.returncode == 0, run.stderr
    assert_same_run(two, one)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "stages"), [(FULL, (3, 1)), (FULL, (1, 2)), (LORA, (1, 3))])
def test_a_run_goes_on_with_another_stage_and_number(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: list[str], stages: tuple[int, int]
) -> None:
    """Stage 1 is one process here."""
    flags = [*recipe, *STEADY, "--max-steps", "6", "--set", "training.save_steps=3"]
    flags += ["--set", "training.save_total_limit=5", "--set", "training.recompute=true"]
    manner = [[*flags, "--sharding", f"stage{stage}", *(TWO if stage > 1 else [])] for stage in stages]
    once, out = tmp_path / "once", tmp_path / "out"
    first = finetune(data, once, tiny_checkpoint, *manner[0])
    assert first.returncode == 0, first.stderr
    out.mkdir()
    (once / "checkpoint-3").rename(out / "checkpoint-3")
    for name in ("run.json", "metrics.jsonl"):
        (out / name).write_bytes((once / name).read_bytes())
    then = finetune(data, out, tiny_checkpoint, *manner[1], "--resume")
    assert then.returncode == 0 and "resuming after update 3" in then.stderr, then.stderr
    np.testing.assert_allclose(losses(out), losses(once), rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sharding", "stage4"], "sharding"),
        (["--sharding", "stage3", "--set", "training.recompute=false"], "needs training.recompute=true"),
        ([*sharded(2), "--set", "training.eval_answers=2"], "cannot answer while it learns"),
        ([*sharded(3), "--tensor-parallel", "2"], "does not go with tensor_parallel"),
    ],
)
def test_refusals_come_in_one_line(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    run = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *FULL, *flags, "--dry-run")
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1, run.stderr


def test_stage_2_is_stage_1_where_no_matrix_learns() -> None:
    full = {"method": "full", "train": ("vision", "language")}
    assert own_stage(TrainingOptions(sharding="stage2", **full)) == 2
    assert own_stage(TrainingOptions(sharding="stage3", **full)) == 3
    assert own_stage(TrainingOptions(sharding="stage2", method="full", train=("merger",))) == 0
    assert own_stage(TrainingOptions(sharding="stage2", lora=LoraOptions())) == 0
    assert own_stage(TrainingOptions(sharding="stage3", lora=LoraOptions())) == 3
    assert own_stage(TrainingOptions(sharding="stage1", **full)) == 0


def test_large_matrices_are_cut_by_rows_and_all_else_is_whole() -> None:
    model = empty_model(FULL_7B, "bfloat16")
    before = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    share_out(model, 3, 5, 8)
    held = model.held
    assert isinstance(held, Shards)
    for name, parameter in model.named_parameters():
        cut = held.cut(name, FULL_7B)
        rows, *columns = before[name]
        if name.startswith("visual.") or len(before[name]) == 1:
            assert cut is None and tuple(parameter.shape) == before[name] and held.copies(name, FULL_7B) == 8
        else:
            assert cut == Cut(0, 5 * rows // 8, 6 * rows // 8, rows) and held.copies(name, FULL_7B) == 1
            assert tuple(parameter.shape) == (rows // 8, *columns) and parameter.stop_gradient
    with whole_shapes(model):
        assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == before
    assert tuple(model.lm_head.weight.shape) == (3584 // 8, 152064)


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_estimated_is_what_a_process_has(stage: int) -> None:
    whole = empty_model(FULL_7B, "bfloat16")
    matrices = {
        name: int(parameter.size)
        for name, parameter in whole.named_parameters()
        if parameter.ndim == 2 and not name.startswith("visual.")
    }
    language = [int(p.size) for name, p in whole.named_parameters() if not name.startswith("visual.")]
    share_out(whole, stage, 0, 8)
    kept = sum(int(parameter.size) for parameter in whole.parameters())
    layer = sum(size for name, size in matrices.items() if name.startswith("model.layers.7."))
    ends = matrices["model.embed_tokens.weight"] + matrices["lm_head.weight"]
    options = TrainingOptions(method="full", sharding=f"stage{stage}", recompute=True)
    estimate, learning, total = estimate_training(FULL_7B, options, "bfloat16", 1024, 8)
    assert estimate.weights == 2 * (kept + (sum(matrices.values()) if stage == 2 else layer + ends))
    own = sum(language) - sum(matrices.values()) * 7 // 8
    assert estimate.gradients == 4 * own + 6 * matrices["lm_head.weight"] and estimate.optimizer == 12 * own
    assert learning == sum(language) and total > learning
    stage_1, _, _ = estimate_training(FULL_7B, replace(options, sharding="stage1"), "bfloat16", 1024, 8)
    assert estimate.total < 0.75 * stage_1.total and (stage == 2 or estimate.total < 0.5 * stage_1.total)


def test_a_plan_counts_what_shared_out_matrices_send() -> None:
    options = TrainingOptions(method="full", sharding="stage1", recompute=True, batch_size=64, micro_batch_size=1)
    one, two, three = (
        plan_training(FULL_7B, replace(options, sharding=f"stage{n}"), dtype="bfloat16", devices=8, tokens=2048)
        for n in (1, 2, 3)
    )
    assert one.flops == two.flops == three.flops
    language = 7.6e9
    # Eight micro-batches on each device: 8 times gradients, and weights once or twice for each.
    assert two.sent == pytest.approx(7 / 8 * language * (8 * 4 + 2), rel=0.01)
    assert three.sent == pytest.approx(7 / 8 * language * (8 * 4 + 8 * 2 * 2), rel=0.01)
    assert one.sent == pytest.approx(7 / 8 * language * (4 + 2), rel=0.01)


def test_rows_that_do_not_go_evenly_stay_whole() -> None:
    model = empty_model(TINY, "float32")
    share_out(model, 2, 0, 7)
    assert isinstance(model.held, Shards) and not model.held.rows
