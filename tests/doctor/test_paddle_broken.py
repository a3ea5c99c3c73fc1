"""Paddle missing, crashing, hanging, or with a GPU: each is a line of the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qvl.doctor import child, probe
from qvl.errors import PADDLE_MISSING
from qvl.model.adapter import write_adapter
from qvl.model.adapter_config import AdapterConfig
from tests.doctor.conftest import Run

pytestmark = pytest.mark.slow  # programs are started

WAYS = {
    "missing": 'raise ModuleNotFoundError("No module named \'paddle\'", name="paddle")',
    "ill-linked": 'raise ImportError("libcudart.so.12: cannot open shared object file")',
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    "noisy": "import os; print('on standard output'); os.system('echo from outside'); raise ImportError('noise')",
    "hang": "import time; time.sleep(600)",
}


@pytest.fixture
def paddle_that(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`paddle_that(way)` puts another Paddle in the way of child processes, and of no one else."""
    assert not home.exists()

    def put(way: str) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "paddle.py").write_text(WAYS[way] + "\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))

    return put


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("missing", "Paddle is not installed: pip install 'qvl[cpu]'"),
        ("ill-linked", "libcudart.so.12: cannot open shared object file"),
        ("noisy", "Paddle does not run: ImportError: noise"),
        pytest.param(
            "crash",
            "Paddle crashed (SIGILL); this build of Paddle needs a processor with AVX",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
        ),
    ],
)
def test_a_broken_paddle_is_a_line_and_the_rest_is_shown(doctor: Run, paddle_that: Any, way: str, words: str) -> None:
    paddle_that(way)
    code, out, err = doctor("--json", "--profile", "demo")
    report = json.loads(out)
    assert (code, err, report["ok"]) == (1, "", False)
    assert len(report["problems"]) == 1 and words in report["problems"][0]
    assert report["paddle"]["error"] == report["problems"][0] and report["paddle"]["version"] == ""
    assert report["fits"] == [] and report["ops"]["ops"] == [] and report["ops"]["error"]
    assert report["cpu"]["cores"] >= 1 and report["versions"]["numpy"]
    code, out, err = doctor()
    assert (code, err) == (1, "")
    assert "does not run here" in out and "Traceback" not in out and max(map(len, out.splitlines())) <= 80


def test_a_paddle_that_hangs_is_given_up(doctor: Run, paddle_that: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paddle_that("hang")
    monkeypatch.setattr(probe, "DEADLINE", 2.0)
    start = time.monotonic()
    code, out, _ = doctor("-q")
    assert (code, out) == (1, "problem    Paddle did not answer within 2 s\n")
    assert time.monotonic() - start < 60


def test_a_crash_halfway_keeps_what_was_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said = '{"part": "paddle", "version": "3.3.1"}\n{"part": "placem'
    monkeypatch.setattr(
        subprocess, "run", lambda *_args, **_more: SimpleNamespace(stdout=said, stderr="", returncode=-6)
    )
    found, broken = probe.ask({})
    assert found == [{"part": "paddle", "version": "3.3.1"}]
    assert broken == "Paddle crashed (SIGABRT)"


def test_files_in_the_working_directory_are_not_taken_for_modules(
    doctor: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "paddle.py").write_text("raise ImportError('from the working directory')\n")
    (tmp_path / "json.py").write_text("raise ImportError('from the working directory')\n")
    monkeypatch.chdir(tmp_path)
    assert doctor("-q") == (0, "", "")


class FakeGpu:
    """What Paddle would say of a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        import paddle

        current = ["cpu"]
        properties = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80 * 2**30)
        for module, name, value in (
            (paddle.device, "is_compiled_with_cuda", lambda: True),
            (paddle.device, "get_device", lambda: current[0]),
            (paddle, "set_device", lambda device: current.__setitem__(0, device)),
            (paddle.version, "cuda", lambda: "12.6"),
            (paddle.version, "cudnn", lambda: "9.5.1"),
            (paddle.amp, "is_bfloat16_supported", lambda _device: True),
            (paddle.device.cuda, "device_count", lambda: count),
            (paddle.device.cuda, "get_device_properties", lambda _index: properties),
            (paddle.device.cuda, "get_device_capability", lambda _index: (9, 0)),
            (paddle.device.cuda, "memory_allocated", lambda _index: 0),
            (paddle.device.cuda, "memory_reserved", lambda _index: 0),
            (paddle.cuda, "mem_get_info", lambda _index: (80 * 2**30, 80 * 2**30)),
        ):
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("here")
def test_with_a_gpu_both_places_are_reckoned(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, 2)
    monkeypatch.setattr(probe, "nvidia", list)
    code, out, _ = doctor("--json")
    report = json.loads(out)
    assert code == 0
    assert (report["paddle"]["device"], report["paddle"]["dtype"]) == ("gpu:0", "bfloat16")
    assert [gpu["name"] for gpu in report["gpus"]] == ["Some GPU", "Some GPU"]
    verdicts = {(fit["profiles"][0], fit["device"]): fit for fit in report["fits"] if fit["quantize"] == "none"}
    widths = {
        device: {fit["quantize"] for fit in report["fits"] if fit["device"] == device} for device in ("gpu:0", "cpu")
    }
    assert widths == {"gpu:0": {"none", "int8", "int4"}, "cpu": {"none", "bf16", "int8", "int4"}}
    assert verdicts["7b", "gpu:0"]["verdict"] == "full" and verdicts["72b", "gpu:0"]["verdict"] == "no"
    assert verdicts["7b", "gpu:0"]["free"] == verdicts["7b", "gpu:0"]["size"] == 80 * 2**30
    assert 2 * verdicts["7b", "gpu:0"]["weights"] == verdicts["7b", "cpu"]["weights"]
    bodies = {op["name"]: op["body"] for op in report["ops"]["ops"]}
    assert bodies["varlen_attention"] == "flash"
    out = doctor("--device", "gpu:2")[1]
    assert "--device gpu:2: 2 GPUs found here" in out
    assert "fits       on gpu:0" in out and "fits       on cpu" in out and "built for CUDA 12.6" in out


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.usefixtures("here")
def test_a_gpu_that_this_paddle_cannot_use_is_named(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import paddle

    if paddle.device.is_compiled_with_cuda():
        pytest.skip("this is Paddle's GPU build")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, NVIDIA H200, 570.86.15, 143771, 143000, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    code, out, _ = doctor("--json")
    report = json.loads(out)
    assert code == 0
    assert report["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA H200",
            "memory": 143771 * 2**20,
            "free": 143000 * 2**20,
            "capability": "9.0",
            "driver": "570.86.15",
        }
    ]
    assert "CPU build" in " ".join(report["remarks"])
    assert "NVIDIA H200, 140.4 GiB, 139.6 GiB free, compute capability 9.0" in " ".join(doctor()[1].split())
    assert doctor("-q", "--device", "gpu")[0] == 1
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert json.loads(doctor("--json")[1])["gpus"] == []


def test_the_child_answers_part_by_part() -> None:
    question = {"device": "cpu", "dtype": "auto", "threads": None, "subjects": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qvl.environment.set_threads", lambda _count: None)
        assert [part["part"] for part in child.parts(question)] == ["paddle", "placement", "ops"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "--profile", "demo", "-p", "Hello"],
        ["chat", "--profile", "demo"],
        ["plan", "--profile", "demo"],
        ["quantize", "demo", "-o", "out"],
        ["merge-lora", "adapter", "--base", "demo", "-o", "out"],
        ["bench", "--profile", "demo"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_paddle_a_command_says_how_to_install_it(
    paddle_that: Any, tmp_path: Path, arguments: list[str]
) -> None:
    paddle_that("missing")
    factors = np.ones((2, 192), np.float32), np.ones((192, 2), np.float32)
    adapter = AdapterConfig(rank=2, alpha=4.0, target_modules=("layers.0.self_attn.q_proj",))
    write_adapter(tmp_path / "adapter", adapter, {"model.layers.0.self_attn.q_proj": factors})
    command = [sys.executable, "-m", "qvl.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, input="Hello\n", check=False)
    assert done.stderr.splitlines()[-1] == f"qvl: error: {PADDLE_MISSING}" and done.returncode == 1, done.stderr
    assert not (tmp_path / "out").exists()
