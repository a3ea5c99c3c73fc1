"""Data for the tests of whole runs, and a name for the model that the golden adapters are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import ANSWERS, write_data


@pytest.fixture(autouse=True)
def tiny_by_name(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of models in which the tiny one has a name, "qvl/tiny", as a downloaded one would."""
    home = tmp_path_factory.mktemp("home")
    (home / "models" / "qvl").mkdir(parents=True)
    (home / "models" / "qvl" / "tiny").symlink_to(tiny_checkpoint)
    monkeypatch.setenv("QVL_HOME", str(home))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of noise, each with an answer; in `turned.json`, with the answer of the next."""
    folder = tmp_path_factory.mktemp("data")
    for file, first in (("data.json", 0), ("turned.json", 1)):
        write_data(folder, file, ANSWERS[first:] + ANSWERS[:first])
    return folder
