"""`qvl infer` in this process, with a scripted engine."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from batch_support import RECORDS, Echo, echo_engine
from PIL import Image as PILImage
from scripted import Run, Script, Terminal, fake_engine
from talking import Talk

import qvl.cli


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    script = Script()
    module = types.ModuleType("qvl.runtime.engine")
    module.Engine = fake_engine(script)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qvl.runtime.engine", module)
    monkeypatch.setattr("qvl.cli.infer.find", lambda _model: None)
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("QVL_DEBUG", raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    return script


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    PILImage.new("RGB", (200, 100), "white").save(path)
    return str(path)


@pytest.fixture
def run(script: Script, capsys: pytest.CaptureFixture[str]) -> Run:
    assert script.load == {}

    def call(*arguments: str) -> tuple[int, str, str]:
        code = qvl.cli.main(["infer", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A conversation with a scripted model, in a folder with two pictures."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "dog.png"):
        PILImage.new("RGB", (200, 100), "white").save(name)
    return Talk()


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Echo:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    echo = Echo(tmp_path / "model")
    module = types.ModuleType("qvl.runtime.engine")
    module.Engine = echo_engine(echo)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qvl.runtime.engine", module)
    monkeypatch.setattr("qvl.cli.infer.find", lambda _model: None)
    monkeypatch.delenv("QVL_DEBUG", raising=False)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.chdir(tmp_path)
    return echo


@pytest.fixture
def batch(echo: Echo, picture: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `qvl infer --batch in.jsonl` with these arguments; cat.png lies beside the file."""
    assert echo.loads == 0
    Path("data").mkdir()
    Path(picture).rename("data/cat.png")
    Path("data/in.jsonl").write_text("\n".join(RECORDS) + "\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = qvl.cli.main(["infer", "--profile", "demo", "--batch", "data/in.jsonl", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
