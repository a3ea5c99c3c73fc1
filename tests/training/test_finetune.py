"""`qvl finetune` as users run it, on a tiny model that learns eight pictures by heart."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvl import ops
from qvl.cli import main
from qvl.training.checkpoints import last_checkpoint, list_checkpoints
from tests.training.runs import ANSWERS, FULL, LORA, command, finetune, finetune_here, losses, noise, wait_for_steps

pytestmark = pytest.mark.slow  # programs are started


def ask(capsys: pytest.CaptureFixture[str], picture: Path, *model: str) -> str:
    """The answer to the question that was trained, with the limits that it was trained with."""
    arguments = ["infer", str(picture), "-p", "What is it?", "--profile", "2b", "--set", "max_pixels=262144", *model]
    assert main([*arguments, "--temperature", "0", "--max-new-tokens", "20", "--quiet"]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.slow
def test_a_model_trained_whole_answers_word_for_word(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = tmp_path / "out" / "c.png"  # in a folder that the run makes
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *FULL, "--max-steps", "120", "--plot", str(curve))
    assert run.returncode == 0, run.stderr
    model = tmp_path / "out" / "model"
    assert run.stdout == f"{model}\n"
    assert [ask(capsys, data / f"{n}.png", "--model", str(model)) for n in range(8)] == list(ANSWERS)
    assert Image.open(curve).size[0] > 500
    described = json.loads((tmp_path / "out" / "run.json").read_text())
    assert described["steps"] == 120 and described["profile"]["name"] == "2b-full"
    from visualdl import LogReader

    (log,) = (tmp_path / "out" / "visualdl").iterdir()
    drawn = [point.value for point in LogReader(file_path=str(log)).get_data("scalar", "train/loss")]
    np.testing.assert_allclose(drawn, [loss for _, loss in losses(tmp_path / "out")], rtol=1e-6)
    assert described["data_report"] and len(described["data_fingerprint"]) == 64


@pytest.mark.skipif(not ops.can_round(), reason="no unit for bfloat16 here, or there are no native ops")
def test_rounded_products_learn_as_well(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    for products in ("float32", "bfloat16"):
        out = tmp_path / products
        settings = [*FULL, "--max-steps", "8", "--set", f"training.products={products}"]
        settings += ["--set", "training.learning_rate=3e-4"]
        run = finetune(data, out, tiny_checkpoint, *settings)
        assert run.returncode == 0, run.stderr
        found[products] = [loss for _, loss in losses(out)]
    exact, rounded = found["float32"], found["bfloat16"]
    assert exact[0] != rounded[0]
    np.testing.assert_allclose(rounded[0], exact[0], rtol=2**-8)  # the bits of bfloat16, before anything was learnt
    # From there on the two runs go their own ways, equally far.
    assert exact[-1] < 0.8 * exact[0] and rounded[-1] < 0.8 * rounded[0]


@pytest.mark.slow
def test_an_adapter_answers_word_for_word_merged_and_not(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An adapter leaves the embeddings alone, so its base has to know the words: it gives each picture a wrong answer.
    first = finetune(data, tmp_path / "first", tiny_checkpoint, *FULL, "--max-steps", "120", file="turned.json")
    assert first.returncode == 0, first.stderr
    base = tmp_path / "first" / "model"
    assert ask(capsys, data / "0.png", "--model", str(base)) == ANSWERS[1]
    run = finetune(data, tmp_path / "out", base, *LORA, "--max-steps", "150")
    assert run.returncode == 0, run.stderr
    adapter = tmp_path / "out" / "adapter"
    pictures = [data / f"{n}.png" for n in range(8)]
    assert [ask(capsys, p, "--adapter", str(adapter)) for p in pictures] == list(ANSWERS)
    merged = tmp_path / "merged"
    assert main(["merge-lora", str(adapter), "-o", str(merged)]) == 0
    capsys.readouterr()
    assert [ask(capsys, p, "--model", str(merged)) for p in pictures] == list(ANSWERS)
    # It is the picture that decides: ones that were never seen do not all get the same answer.
    for number in range(8):
        noise(100 + number).save(tmp_path / f"{number}.png")
    answers = {ask(capsys, tmp_path / f"{number}.png", "--model", str(merged)) for number in range(8)}
    assert len(answers) > 2


def test_a_dry_run_estimates_and_writes_nothing(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *LORA, "--dry-run")
    assert (run.returncode, run.stdout) == (0, "")
    assert "8 of 8 samples" in run.stderr and "GiB: weights" in run.stderr and "parameters learn" in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_sample_can_be_looked_at(data: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data / "data.json"), "--model", str(tiny_checkpoint), "--show-sample", "1"]
    assert main(["finetune", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Two dogs run." in out and "<|image_pad|>" in out and "supervised" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": ["missing.png"]}, "missing.png"),
        ({"images": []}, "1"),
        ({"messages": [{"role": "user", "content": "<image>Hi"}]}, "assistant"),
    ],
)
def test_a_broken_sample_stops_the_run_before_it_starts(
    data: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    records = json.loads((data / "data.json").read_text())
    records[3].update(change)
    bad = data / "bad.json"
    bad.write_text(json.dumps(records))
    run = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *LORA, file="bad.json")
    assert run.returncode in (1, 2) and run.stderr.count("\n") == 1
    assert "bad.json" in run.stderr and "3" in run.stderr and words in run.stderr
    flags = [*LORA, "--set", "training.on_bad_sample=skip", "--dry-run"]
    skipped = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *flags, file="bad.json")
    assert skipped.returncode == 0 and "7 of 8 samples" in skipped.stderr


def test_an_output_that_cannot_be_written_is_noticed_first(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    run = finetune_here(capfd, data, tmp_path / "file" / "out", tiny_checkpoint, *LORA)
    assert run.returncode == 1 and "cannot be written" in run.stderr and run.stderr.count("\n") == 1


def test_a_run_is_not_overwritten_and_not_resumed_with_other_data(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert finetune(data, out, tiny_checkpoint, *LORA, "--max-steps", "2").returncode == 0
    short = [*LORA, "--max-steps", "2"]
    again = finetune_here(capfd, data, out, tiny_checkpoint, *short)
    assert again.returncode == 1 and "--resume" in again.stderr
    other = finetune_here(capfd, data, out, tiny_checkpoint, *short, "--resume", "--seed", "7")
    assert other.returncode == 2 and "cannot be resumed" in other.stderr
    pictures = finetune_here(
        capfd, data, out, tiny_checkpoint, *LORA, "--max-steps", "2", "--resume", "--set", "max_pixels=50176"
    )
    assert pictures.returncode == 2 and "cannot be resumed: max_pixels: 262144 before, 50176 now" in pictures.stderr
    model = finetune_here(capfd, data, out, "demo", *short, "--resume")
    assert model.returncode == 2 and f"model: {tiny_checkpoint} before, demo now; go on as it began" in model.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plot", "no/such/folder/loss.png"], "there is no folder no/such/folder"),
        (["--plot", "loss.txt"], "must end with one of"),
        (["--nproc", "4", "--devices", "0,1"], "leave out one"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    run = finetune_here(capfd, data, tmp_path / "out", "demo", *flags)
    assert run.returncode == 2 and words in run.stderr and not (tmp_path / "out").exists()


def test_a_run_needs_no_home_that_can_be_written(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))  # which nobody can make, root neither
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.delenv("PPNLP_HOME", raising=False)
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *LORA, "--max-steps", "1")
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "out" / "visualdl").iterdir())
    assert not list((tmp_path / "temporary").glob("qvl-*"))  # Paddle leaves a folder of its own


def test_held_out_samples_are_judged_and_the_best_checkpoint_stays(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = ["eval_split=0.25", "eval_steps=2", "save_steps=2", "save_total_limit=1", "learning_rate=0.5"]
    flags = [word for setting in settings for word in ("--set", f"training.{setting}")]
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *LORA, *flags, "--max-steps", "6")
    assert run.returncode == 0, run.stderr
    judged = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert [record["step"] for record in judged] == [2, 4, 6] and "held-out loss" in run.stderr
    best = min(judged, key=lambda record: record["loss"])["step"]
    assert [step for step, _ in list_checkpoints(tmp_path / "out")] == sorted({best, 6})


@pytest.mark.slow
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_answers_during_training_are_those_of_qvl_infer_afterwards(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: list[str]
) -> None:
    settings = ["training.eval_split=0.4", "training.eval_answers=2", "training.eval_steps=20"]
    settings += ["generation.max_new_tokens=20", "training.lora.dropout=0.2", "training.save_steps=1000"]
    flags = [*method, *(word for setting in settings for word in ("--set", setting)), "--max-steps", "40"]
    out = tmp_path / "out"
    run = finetune(data, out, tiny_checkpoint, *flags)
    assert run.returncode == 0, run.stderr
    judged = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    assert [len(record["answers"]) for record in judged] == [2, 2]
    result = ["--adapter", str(out / "adapter"), "--model", str(tiny_checkpoint)]
    result = result if method is LORA else ["--model", str(out / "model")]
    for one in judged[-1]["answers"]:
        number = int(one["sample"].rpartition(" ")[2])
        assert one["expected"] == ANSWERS[number]
        assert ask(capsys, data / f"{number}.png", *result) == one["answer"]
        assert f"sample {number}: " in run.stderr


def test_answers_need_samples_that_are_held_out(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = finetune_here(capfd, data, tmp_path / "out", tiny_checkpoint, *LORA, "--set", "training.eval_answers=2")
    assert run.returncode == 2 and "training.eval_split" in run.stderr


def test_a_profile_for_inference_is_refused(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = finetune_here(capfd, data, tmp_path, "demo", "--profile", "2b")
    assert run.returncode == 2 and "2b-lora" in run.stderr


RESUMED = [*LORA, "--max-steps", "40", "--set", "training.save_steps=3", "--set", "training.lora.dropout=0.1"]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run = finetune(data, out, tiny_checkpoint, *RESUMED)
    assert run.returncode == 0, run.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_and_goes_on_where_it_was(
    data: Path, unbroken: Path, tiny_checkpoint: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    out = tmp_path / "out"
    line = command("finetune", "--data", str(data / "data.json"), "-o", str(out), "--model", str(tiny_checkpoint))
    program = subprocess.Popen([*line, *RESUMED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_steps(out, 5, program)
    program.send_signal(kind)
    program.communicate(timeout=120)
    assert program.returncode == 128 + kind
    saved = last_checkpoint(out)
    assert saved is not None and int(saved.name.rpartition("-")[2]) == losses(out)[-1][0]
    assert finetune(data, out, tiny_checkpoint, *RESUMED, "--resume").returncode == 0
    assert losses(out) == losses(unbroken)


@pytest.mark.slow
def test_a_run_of_all_weights_asked_to_stop_saves_as_well(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = command("finetune", "--data", str(data / "data.json"), "-o", str(out), "--model", str(tiny_checkpoint))
    program = subprocess.Popen([*line, *FULL, "--max-steps", "400"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_steps(out, 2, program)
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=120)
    assert program.returncode == 128 + signal.SIGTERM
    saved = last_checkpoint(out)
    assert saved is not None and int(saved.name.rpartition("-")[2]) == losses(out)[-1][0]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(
    data: Path, unbroken: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments, among them while a checkpoint is being written."""
    chance = random.Random(3)
    out = tmp_path / "out"
    line = command("finetune", "--data", str(data / "data.json"), "-o", str(out), "--model", str(tiny_checkpoint))
    for _ in range(int(os.environ.get("QVL_TEST_KILLS", "5"))):
        program = subprocess.Popen([*line, *RESUMED, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before = losses(out)[-1][0] if (out / "metrics.jsonl").is_file() and losses(out) else 0
        wait_for_steps(out, min(before + 1, 39), program)
        time.sleep(chance.uniform(0, 0.6))
        program.kill()
        program.communicate(timeout=60)
        for _, checkpoint in list_checkpoints(out):
            assert (checkpoint / "optimizer.safetensors").is_file() and (checkpoint / "adapter").is_dir()
    assert finetune(data, out, tiny_checkpoint, *RESUMED, "--resume").returncode == 0
    assert losses(out) == losses(unbroken)
