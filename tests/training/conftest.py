"""The golden adapters say that they are for "qvl/tiny": here is where that is found."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def tiny_by_name(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of models in which the tiny one has a name, as a downloaded one would."""
    home = tmp_path_factory.mktemp("home")
    (home / "models" / "qvl").mkdir(parents=True)
    (home / "models" / "qvl" / "tiny").symlink_to(tiny_checkpoint)
    monkeypatch.setenv("QVL_HOME", str(home))
