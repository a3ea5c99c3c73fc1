"""The program in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.cli import main
from tests.e2e.running import Run


@pytest.fixture
def qvl(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program in this process; (exit code, stdout, stderr) down to the file descriptors."""
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path / "config"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
