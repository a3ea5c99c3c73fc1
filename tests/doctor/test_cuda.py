"""What is said of the ops of a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from qvl.doctor import probe
from qvl.ops import native, status
from tests.doctor.conftest import Run
from tests.doctor.screens import as_json
from tests.doctor.test_paddle_broken import FakeGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, 1)
    monkeypatch.setattr(probe, "nvidia", list)


@pytest.mark.usefixtures("here", "gpu")
def test_ops_that_are_not_there_are_named_with_the_reason(doctor: Run) -> None:
    reason = native.why_not() or "this is Paddle's CPU build"
    code, report = as_json(doctor("--json"))
    ops = report["ops"]
    assert (code, ops["built"], ops["reason"], ops["gpu_reason"]) == (0, False, reason, reason)
    assert ops["graphs"] == f"they need the native ops for a GPU: {reason}"
    said = " ".join(doctor()[1].split())
    assert f"native for a GPU: no, {reason}" in said and "decode steps one by one: they need" in said


@pytest.mark.usefixtures("here", "gpu")
def test_ops_that_are_there(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find_gpu_build", lambda: status.Build(("sm_90",), {"mlp": "so"}))
    monkeypatch.setattr("qvl.runtime.graph.why_not", lambda _: "")
    code, report = as_json(doctor("--json"))
    assert code == 0 and report["ops"]["built"] and report["ops"]["gpu_reason"] == report["ops"]["graphs"] == ""
    said = " ".join(doctor()[1].split())
    assert "native ones are built, using sm_90" in said
    assert "native ones for a GPU are built" in said and "decode steps in CUDA graphs" in said


@pytest.mark.usefixtures("here", "gpu")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("QVL_OPS", "native", "QVL_OPS=native: "), ("QVL_CUDA_GRAPH", "off", "QVL_CUDA_GRAPH=off is not known; 0 or 1")],
)
def test_a_wish_that_cannot_be_met(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: Any
) -> None:
    monkeypatch.setenv(name, value)
    code, report = as_json(doctor("--json"))
    assert code == 1 and words in " ".join(report["problems"])


@pytest.mark.usefixtures("here")
def test_without_a_gpu_nothing_is_said_of_them(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "nvidia", list)
    said = doctor()[1]
    assert "GPU are built" not in said and "native for a GPU" not in said
