"""`qvl doctor` in this process, on a machine without models and without wishes in its environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qvl.cli
from qvl.doctor import child, probe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and no other tool's cache."""
    for name in list(os.environ):
        if name.startswith(("QVL_", "FLAGS_", "HF_", "OMP_", "MKL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with Paddle asked in this process, where what it says can be patched."""

    def ask(question: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        # This process has its threads already; how a child gets its own is seen in the tests of the real program.
        return list(child.parts({**question, "threads": None})), ""

    monkeypatch.setattr(probe, "ask", ask)
    monkeypatch.setattr("qvl.environment.set_threads", lambda _count: None)
    return home


@pytest.fixture
def doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    assert not home.exists()

    def run(*arguments: str) -> tuple[int, str, str]:
        code = qvl.cli.main(["doctor", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
