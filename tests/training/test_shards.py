"""Matrices that processes share out: they learn what one process does, and their files are whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qvl.model.part import Cut
from qvl.model.shapes import FULL_7B, TINY
from qvl.model.weights import empty_model
from qvl.profile_training import LoraOptions, TrainingOptions
from qvl.training.shards import Shards, own_stage, share_out, whole_shapes
from tests.training.runs import FULL, LORA, finetune, losses, records

# With a small epsilon Adam's first steps are signs of gradients, and turn rounding into whole steps.
STEADY = ["--set", "training.adam_epsilon=1e-2", "--set", "training.learning_rate=3e-4"]
STEADY += ["--set", "training.micro_batch_size=1"]
VISION = [*FULL, "--set", "training.train=[vision, merger, language]"]
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
@pytest.mark.parametrize(("recipe", "stage"), [(FULL, 2), (FULL, 3), (VISION, 2), (VISION, 3), (LORA, 3)])
def test_processes_learn_what_one_does(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, recipe: list[str], stage: int
) -> None:
    flags = [*recipe, *STEADY, *sharded(stage), "--max-steps", "4"]
    flags += ["--set", "training.eval_split=0.25", "--set", "training.eval_steps=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for out, more in ((one, []), (two, TWO)):
        run = finetune(data, out, tiny_checkpoint, *flags, *more, file=few_pictures(data))
        assert run.returncode == 0, run.stderr
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        got, expected = ([record[key] for record in records(out)] for out in (two, one))
        np.testing.assert_allclose(got, expected, rtol=tolerance)
    for key in ("tokens", "supervised_tokens"):
        assert [record[key] for record in records(two)] == [record[key] for record in records(one)]
    lines = [[json.loads(line)["loss"] for line in (out / "eval.jsonl").open()] for out in (two, one)]
    np.testing.assert_allclose(*lines, rtol=1e-5)
    (result,) = (path.name for path in one.iterdir() if path.name in ("adapter", "model"))
    for path in (one / result).iterdir():
        assert (two / result / path.name).exists()
        if path.suffix == ".safetensors":
            expected, got = load_file(path), load_file(two / result / path.name)
            assert expected.keys() == got.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(got[name], values, rtol=0, atol=2e-5, err_msg=name)


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
    data: Path, tiny_checkpoint: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *FULL, *flags, "--dry-run")
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


def test_rows_that_do_not_go_evenly_stay_whole() -> None:
    model = empty_model(TINY, "float32")
    share_out(model, 2, 0, 7)
    assert isinstance(model.held, Shards) and not model.held.rows
