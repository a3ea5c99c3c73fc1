"""A profile that fine-tunes: what `qvl finetune` refuses before it looks at data, `qvl doctor` calls a problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qvl.cli
from qvl.profile import list_profiles, load_profile
from qvl.training.refusals import refuse_untrainable
from tests.doctor.conftest import Run

pytestmark = pytest.mark.usefixtures("here")

PROFILE = ("--profile", "2b-lora", "--set", "training.max_length=512")


def settings(*keys: str) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["quantize=int4"], "quantised weights cannot learn"),
        (["devices='0,1'"], "the devices of training are those of its processes"),
        (["training.sharding=stage3", "training.recompute=false"], "it needs training.recompute=true"),
        (["training.sharding=stage2", "training.eval_answers=2"], "a model cannot answer while it learns"),
        (["training.sharding=stage2", "tensor_parallel=2"], "does not go with tensor_parallel"),
        (["dtype=float16"], "training is in bfloat16 or float32, not in float16"),
        (["tensor_parallel=2", "training.eval_answers=2"], "a model in parts cannot answer while it learns"),
        (["tensor_parallel=3"], "cannot be split in 3 equal parts"),
        (["training.eval_answers=2"], "set training.eval_split"),
        (["training.micro_batch_size=5"], "batch_size 32 is not a multiple of micro_batch_size 5"),
    ],
)
def test_what_finetune_refuses_is_a_problem(
    doctor: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, keys: list[str], words: str
) -> None:
    flags = [*PROFILE, "--model", "demo", *settings(*keys)]
    code, out, _ = doctor("--json", *flags)
    assert code == 1 and any(words in problem for problem in json.loads(out)["problems"])
    data = ["--data", str(tmp_path / "none.json"), "-o", str(tmp_path / "out")]
    assert qvl.cli.main(["finetune", *data, "--dry-run", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_quantised_model_is_no_base_for_training(doctor: Run) -> None:
    code, out, _ = doctor("--json", *PROFILE, "--model", "2b-awq")
    assert code == 1 and "2b-awq: its weights are quantised; fine-tuning takes" in " ".join(json.loads(out)["problems"])


def test_products_that_cannot_be_rounded_here_are_a_problem(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvl.ops.can_round", lambda: False)
    code, out, _ = doctor("-q", *PROFILE, "--model", "demo", *settings("training.products=bfloat16"))
    assert code == 1 and "training.products=bfloat16" in out


def test_a_flag_about_answers_is_refused(doctor: Run) -> None:
    code, out, err = doctor(*PROFILE, "--cache-dtype", "int8")
    assert (code, out) == (2, "") and "--cache-dtype is of what answers" in err


def test_shipped_profiles_are_refused_nothing() -> None:
    names = [info.name for info in list_profiles() if info.command == "finetune"]
    assert len(names) > 4
    for name in names:
        refuse_untrainable(load_profile(name))
