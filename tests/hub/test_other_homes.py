"""Homes that are nobody's or somebody else's, and the places that other tools keep models in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qvl.cli
from qvl.errors import CheckpointError
from qvl.hub import manifest
from qvl.hub.locate import find
from qvl.hub.store import list_models
from qvl.profile import list_profiles, load_profile
from tests.hub.conftest import Run
from tests.hub.server import Hub

MODEL = "Qwen/Qwen2-VL-2B-Instruct"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`closed(folder)`: nothing in it may be looked at. (The tests may run as root, whom no mode keeps out.)"""

    def close(folder: Path) -> None:
        real_stat, real_scan = os.stat, os.scandir

        def shut(path: Any) -> bool:
            return isinstance(path, str | os.PathLike) and folder in Path(os.fspath(path)).parents

        def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
            if shut(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real_stat(path, *arguments, **options)

        def scandir(path: Any = ".") -> Any:
            if shut(path) or Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return real_scan(path)

        def listdir(path: Any = ".") -> Any:
            with scandir(path) as entries:
                return [entry.name for entry in entries]

        monkeypatch.setattr(os, "stat", stat)
        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "listdir", listdir)

    return close


def test_what_qvl_did_not_download_is_not_removed_from_its_store_either(hub: Hub, run: Run, store: Path) -> None:
    assert hub
    mine = store / "my" / "own"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("precious")
    code, _, err = run("--rm", "my/own")
    assert code == 2 and "is not my/own as qvl has downloaded it; remove it by hand" in err
    assert (mine / "config.json").read_text() == "precious"


def test_without_a_home_folder_the_profiles_are_those_of_qvl(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("QVL_CONFIG_HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QVL_HOME", str(home / "qvl"))
    assert {info.source for info in list_profiles()} == {"shipped"}
    assert load_profile("2b").model == MODEL and find(MODEL) is None
    assert qvl.cli.main(["profiles"]) == 0


def test_a_home_that_may_not_be_looked_into_is_passed_over(home: Path, closed: Callable[[Path], None]) -> None:
    for folder in (".config/qvl/profiles", ".cache/qvl/models/Qwen", ".paddlenlp/models", ".cache/modelscope"):
        (home / folder).mkdir(parents=True)
    closed(home)
    assert {info.source for info in list_profiles()} == {"shipped"} and load_profile("2b").model == MODEL
    assert find(MODEL) is None and list_models() == ()


def test_the_cache_of_another_tool_that_may_not_be_looked_into_is_passed_over(
    home: Path, run: Run, closed: Callable[[Path], None]
) -> None:
    cache = home / ".cache" / "modelscope"
    cache.mkdir(parents=True)
    closed(cache)
    assert run("--verify", "2b")[0] == 1
    code, _, err = run("--rm", "2b")
    assert code != 0 and "foreseen" not in err


def test_a_store_of_the_users_own_that_may_not_be_looked_into_is_an_error(
    home: Path, closed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mine").mkdir()
    monkeypatch.setenv("QVL_HOME", str(home / "mine"))
    closed(home / "mine")
    with pytest.raises(CheckpointError, match="cannot be read"):
        find(MODEL)


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("HF_HOME", "~/hf", "hf/hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/abc"),
        ("HF_HUB_CACHE", "$HOME/hub", "hub/models--Qwen--Qwen2-VL-2B-Instruct/snapshots/abc"),
        ("MODELSCOPE_CACHE", "~/ms", f"ms/models/{MODEL}"),
        ("MODELSCOPE_CACHE", "~/ms", f"ms/hub/{MODEL}"),
        ("XDG_CACHE_HOME", "/nowhere", f".cache/modelscope/hub/models/{MODEL}"),
        ("PPNLP_HOME", "~/nlp", f"nlp/models/{MODEL}"),
    ],
)
def test_models_are_found_where_the_tools_keep_them(
    home: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, place: str
) -> None:
    monkeypatch.setenv(variable, value)
    folder = home / place
    shutil.copytree(tiny_checkpoint, folder)
    assert manifest.read(folder) is None
    if folder.parent.name == "snapshots":
        (folder.parents[1] / "refs").mkdir()
        (folder.parents[1] / "refs" / "main").write_text("abc")
    assert find(MODEL) == folder
    assert [model.folder for model in list_models()] == [folder]
