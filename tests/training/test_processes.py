"""Runs of two processes: they learn what one does, stop together, go on together, and none outlives another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from qvl.training.checkpoints import last_checkpoint, list_checkpoints
from tests.training.runs import FULL, LORA, command, finetune, losses, records, wait_for_steps

pytestmark = pytest.mark.slow  # programs are started

TWO = ["--nproc", "2", "--threads", "1"]
LONG = [*LORA, "--max-steps", "40", "--set", "training.save_steps=3", "--set", "training.lora.dropout=0.1"]
ENDLESS = [*LORA, *TWO, "--max-steps", "100000", "--set", "training.save_steps=50"]


def start(data: Path, out: Path, model: Path, *arguments: str) -> subprocess.Popen[bytes]:
    line = command("finetune", "--data", str(data / "data.json"), "-o", str(out), "--model", str(model), *arguments)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def processes(program: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """Those of a run, by rank."""
    (launcher,) = psutil.Process(program.pid).children()
    return {int(child.environ()["PADDLE_TRAINER_ID"]): child for child in launcher.children()}


def assert_nothing_is_left(out: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        # What has ended meanwhile has no command line any more.
        lines = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
        left = [line for line in lines if str(out) in line]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(left)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "stage1"])
def test_two_processes_learn_what_one_does(data: Path, tiny_checkpoint: Path, tmp_path: Path, sharding: str) -> None:
    # With a small epsilon Adam's first steps are signs of gradients, and turn rounding into whole steps.
    steps = ["--max-steps", "6", "--set", "training.adam_epsilon=1e-2", "--set", "training.learning_rate=3e-4"]
    flags = [*FULL, *steps, "--set", f"training.sharding={sharding}", "--set", "training.micro_batch_size=1"]
    one = finetune(data, tmp_path / "one", tiny_checkpoint, *flags)
    two = finetune(data, tmp_path / "two", tiny_checkpoint, *flags, *TWO)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout == f"{tmp_path / 'two' / 'model'}\n"
    assert "update 6/6" in two.stderr and "FLAGS" not in two.stderr
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        got, expected = ([record[key] for record in records(tmp_path / name)] for name in ("two", "one"))
        np.testing.assert_allclose(got, expected, rtol=tolerance)
    assert [r["supervised_tokens"] for r in records(tmp_path / "two")] == [
        r["supervised_tokens"] for r in records(tmp_path / "one")
    ]
    # The launcher writes the whole environment to its logs.
    assert {path.name for path in (tmp_path / "two" / "logs").iterdir()} == {"workerlog.0", "workerlog.1"}


def run_in_two(script: str, checkpoint: Path, folder: Path) -> None:
    """A script beside this file as two processes of the launcher, with the checkpoint and the folder to write to."""
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    path = Path(__file__).with_name(script)
    line = [*launcher, "--log_dir", str(folder / "logs"), str(path), str(checkpoint), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stdout[-2000:]


@pytest.mark.slow
def test_each_of_two_processes_keeps_its_share_of_the_optimisers_state(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_in_two("sharing.py", tiny_checkpoint, tmp_path)
    first, second = (json.loads((tmp_path / f"share-{rank}.json").read_text()) for rank in (0, 1))
    assert not set(first["held"]) & set(second["held"])
    assert {*first["held"], *second["held"]} == set(first["learning"])
    sizes = [sum(first["learning"][name] for name in share["held"]) for share in (first, second)]
    assert max(sizes) == first["estimated"] and max(sizes) < 0.6 * sum(sizes)


@pytest.mark.slow
def test_two_processes_judge_and_save_together(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each decision to save is one of all processes, or they wait for each other for ever."""
    settings = ["eval_split=0.25", "eval_steps=1", "save_steps=1000"]
    flags = [*FULL, *(word for setting in settings for word in ("--set", f"training.{setting}")), *TWO, "--max-steps"]
    run = finetune(data, tmp_path / "short", tiny_checkpoint, *flags, "3")
    assert run.returncode == 0, run.stderr
    assert [step for step, _ in list_checkpoints(tmp_path / "short")]


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_has_both_break_off_judging(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_in_two("breaking.py", tiny_checkpoint, tmp_path)
    ended = [json.loads((tmp_path / f"ended-{rank}.json").read_text()) for rank in (0, 1)]
    assert ended == [{"stopped": True, "reads": 1, "judged": [], "updates": 1}] * 2
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_asked_to_stop_save_and_go_on_where_they_were(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(data, whole, tiny_checkpoint, *LONG, *TWO).returncode == 0
    program = start(data, out, tiny_checkpoint, *LONG, *TWO)
    wait_for_steps(out, 5, program)
    program.send_signal(kind)
    said = program.communicate(timeout=120)[1].decode()
    assert program.returncode == 128 + kind, said
    assert said.endswith(f"qvl: error: stopped by {kind.name}; --resume goes on from here\n")
    assert_nothing_is_left(out)
    saved = last_checkpoint(out)
    assert saved is not None and int(saved.name.rpartition("-")[2]) == losses(out)[-1][0] < 40
    resumed = finetune(data, out, tiny_checkpoint, *LONG, *TWO, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    same = ("step", "loss", "grad_norm", "learning_rate", "supervised_tokens", "tokens")
    assert [[r[key] for key in same] for r in records(out)] == [[r[key] for key in same] for r in records(whole)]
    final = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (out, whole)]
    assert final[0] == final[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = start(data, out, tiny_checkpoint, *ENDLESS)
    wait_for_steps(out, 3, program)
    processes(program)[1].send_signal(signal.SIGTERM)
    program.communicate(timeout=120)
    assert program.returncode == 128 + signal.SIGTERM
    saved = last_checkpoint(out)
    assert saved is not None and int(saved.name.rpartition("-")[2]) == losses(out)[-1][0]
    assert not (out / "adapter").exists()


@pytest.mark.slow
def test_what_two_processes_began_one_can_finish(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = [*LORA, "--max-steps", "20", "--set", "training.micro_batch_size=1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(data, whole, tiny_checkpoint, *flags).returncode == 0
    program = start(data, out, tiny_checkpoint, *flags, *TWO)
    wait_for_steps(out, 3, program)
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=120)
    if program.returncode:  # else it was already through
        resumed = finetune(data, out, tiny_checkpoint, *flags, "--resume")
        assert resumed.returncode == 0 and "resuming after update" in resumed.stderr
    np.testing.assert_allclose(losses(out), losses(whole), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_is_killed_the_others_end_and_it_is_named(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, rank: int
) -> None:
    out = tmp_path / "out"
    program = start(data, out, tiny_checkpoint, *ENDLESS)
    wait_for_steps(out, 2, program)
    processes(program)[rank].kill()
    killed = time.monotonic()
    said = program.communicate(timeout=60)[1].decode()
    assert time.monotonic() - killed < 30
    assert program.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("qvl: error: ") and f"process {rank} " in last and f"workerlog.{rank}" in last
    assert_nothing_is_left(out)


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "data"
    pictures.mkdir()
    for path in data.iterdir():
        (pictures / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    program = start(pictures, out, tiny_checkpoint, *ENDLESS, "--set", "training.cache_mb=0")
    wait_for_steps(out, 2, program)
    (pictures / "3.png").unlink()
    said = program.communicate(timeout=60)[1].decode()
    assert program.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("qvl: error: ") and "data.json: sample 3" in last and "3.png" in last
    assert_nothing_is_left(out)


@pytest.mark.slow
def test_a_run_whose_starter_is_killed_saves_and_ends(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = start(data, out, tiny_checkpoint, *ENDLESS)
    wait_for_steps(out, 2, program)
    program.kill()
    program.communicate(timeout=60)
    assert_nothing_is_left(out)
    saved = last_checkpoint(out)
    assert saved is not None and int(saved.name.rpartition("-")[2]) == losses(out)[-1][0]


def test_a_broken_sample_is_reported_once_by_two_processes(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    samples = json.loads((data / "data.json").read_text())
    samples[3]["images"] = ["missing.png"]
    (data / "broken.json").write_text(json.dumps(samples))
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *LORA, *TWO, file="broken.json")
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.count("qvl: error") == 1 and "broken.json: sample 3" in run.stderr


def test_gpus_that_are_not_there_are_named(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = finetune(data, tmp_path / "out", tiny_checkpoint, *LORA, "--devices", "0,977")
    assert run.returncode == 1 and "--devices 0,977" in run.stderr and run.stderr.count("\n") == 1
