"""`qvl download` from each source: the right files, once, from where they were asked for."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qvl.cli
from qvl.errors import CheckpointError
from qvl.hub import manifest
from qvl.hub.locate import find, locate
from qvl.hub.names import PUBLISHED
from tests.hub.answers import cut
from tests.hub.conftest import BIG, INDEX, NEEDED, NOT_NEEDED, SHARDS, Run, is_model
from tests.hub.server import COMMIT, Hub
from tests.hub.test_store import in_huggingface_cache


@pytest.mark.parametrize("source", ["huggingface", "modelscope", "bos", "aistudio"])
def test_a_model_comes_whole_from_every_source(hub: Hub, run: Run, store: Path, source: str) -> None:
    code, out, err = run("2b", "--source", source)
    folder = store / hub.model
    assert (code, out) == (0, f"{folder}\n"), err
    assert is_model(folder, hub) and find(hub.model) == folder
    assert not hub.names() & set(NOT_NEEDED)
    record = manifest.read(folder)
    assert record is not None and record.source == source and record.revision in (COMMIT, "master", "")
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name], "nothing partial is left"


def test_a_second_download_of_the_same_asks_for_nothing(hub: Hub, run: Run) -> None:
    assert run("2b")[0] == 0
    before = len(hub.seen)
    code, out, err = run("2b")
    assert code == 0 and out.endswith(f"{hub.model}\n") and "is here already" in err
    assert len(hub.seen) == before


@pytest.mark.parametrize("name", ["2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen/qwen2-vl-2b-instruct", "2b-lora", "2B"])
def test_a_model_has_many_names(hub: Hub, run: Run, store: Path, name: str) -> None:
    assert run(name)[0] == 0
    assert is_model(store / hub.model, hub)


def test_every_published_checkpoint_has_a_short_name() -> None:
    sizes = {"2B", "7B", "72B"}
    forms = {"", "-Instruct", "-Instruct-AWQ", "-Instruct-GPTQ-Int4", "-Instruct-GPTQ-Int8"}
    assert set(PUBLISHED.values()) == {f"Qwen/Qwen2-VL-{size}{form}" for size in sizes for form in forms}


def test_an_unknown_name_is_answered_with_the_nearest(hub: Hub, run: Run) -> None:
    code, _, err = run("7b-gptq-int44")
    assert code == 2 and "did you mean '7b-gptq-int4'" in err
    assert run("demo")[0] == 2
    assert not hub.seen


def test_what_hugging_faces_tools_have_is_used_where_it_is(hub: Hub, run: Run, home: Path, store: Path) -> None:
    source = home / "source"
    source.mkdir()
    for name in (*NEEDED, *SHARDS, INDEX):
        (source / name).write_bytes(hub.files[name])
    snapshot = in_huggingface_cache(source, home, hub.model)
    code, out, err = run("2b")
    assert (code, out) == (0, f"{snapshot}\n") and "Hugging Face's cache" in err
    assert not hub.seen and not store.exists()


@pytest.mark.parametrize("cache", ["huggingface", "modelscope", "paddlenlp"])
def test_files_that_another_tool_has_are_linked_and_not_fetched(
    hub: Hub, run: Run, home: Path, store: Path, cache: str
) -> None:
    source = home / "source"
    source.mkdir()
    for name in ("config.json", BIG):
        (source / name).write_bytes(hub.files[name])
    (source / SHARDS[1]).write_bytes(hub.files[SHARDS[1]][:-1] + b"!")  # broken there
    if cache == "huggingface":
        place = in_huggingface_cache(source, home, hub.model)
    else:
        caches = {"modelscope": ".cache/modelscope/hub/models", "paddlenlp": ".paddlenlp/models"}
        place = home / caches[cache] / hub.model

        place.parent.mkdir(parents=True)
        source.rename(place)
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)
    assert BIG not in hub.names() and SHARDS[1] in hub.names()
    assert (store / hub.model / BIG).samefile(place / BIG)


def test_a_folder_of_the_users_choice(hub: Hub, run: Run, tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "here" / "model"
    code, out, _ = run("2b", "--dir", str(folder))
    assert (code, out) == (0, f"{folder}\n") and is_model(folder, hub)
    assert not store.exists()
    code, out, _ = run("--list", "--dir", str(folder), "--json")
    assert code == 0 and json.loads(out)["models"][0]["id"] == hub.model
    assert run("2b", "7b", "--dir", str(folder))[0] == 2
    code, _, err = run("7b", "--dir", str(folder))
    assert code == 1 and f"{hub.model} is there; name another folder" in err
    assert run("--rm", "7b", "--dir", str(folder))[0] == 2 and is_model(folder, hub)


def test_a_folder_with_something_else_in_it_is_left_alone(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    code, _, err = run("2b", "--dir", str(tmp_path / "mine"))
    assert code == 1 and "has something in it that qvl did not put there" in err and not hub.seen
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_an_empty_folder_keeps_its_mode(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team").chmod(0o2775)
    assert run("2b", "--dir", str(tmp_path / "team"))[0] == 0
    assert is_model(tmp_path / "team", hub) and stat.S_IMODE((tmp_path / "team").stat().st_mode) == 0o2775


def test_the_working_directory_is_not_replaced(
    hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = Path.cwd().stat().st_ino
    for folder in (".", str(tmp_path / "empty")):
        code, out, err = run("2b", "--dir", folder)
        assert (code, out) == (1, "") and "is the working directory; name a folder inside it" in err and not hub.asked
    assert (tmp_path / "empty").stat().st_ino == before
    assert run("2b", "--dir", "inside")[0] == 0 and is_model(tmp_path / "empty" / "inside", hub)
    monkeypatch.chdir(tmp_path / "empty" / "inside")
    assert run("2b", "--dir", ".")[0] == 0, "what is there is there"
    os.truncate(BIG, 10)
    assert run("2b", "--dir", ".")[0] == 0 and is_model(Path(), hub), "and is repaired file by file"


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_touches_no_network(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    flags = ["--offline"] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv("QVL_OFFLINE", "1")
    code, _, err = run("2b", *flags)
    assert code == 1 and "is not on this machine, and --offline or QVL_OFFLINE forbids" in err
    assert not hub.seen


def test_json_says_what_was_done(hub: Hub, run: Run, store: Path) -> None:
    code, out, err = run("2b", "--json")
    (got,) = json.loads(out)["models"]
    assert code == 0 and err == ""
    assert (got["model"], got["folder"], got["source"]) == (hub.model, str(store / hub.model), "huggingface")
    assert got["bytes"] == hub.sent() and not got["was_here"]


def test_a_model_that_cannot_be_had_does_not_keep_the_others_away(hub: Hub, run: Run, store: Path) -> None:
    code, out, err = run("7b-base", "2b")
    assert (code, out) == (1, f"{store / hub.model}\n") and is_model(store / hub.model, hub)
    assert [line for line in err.splitlines() if line.startswith("qvl: error: Qwen/Qwen2-VL-7B could not be")]
    code, out, err = run("7b-base", "2b", "--json")
    failed, got = json.loads(out)["models"]
    assert code == 1 and failed["model"] == "Qwen/Qwen2-VL-7B" and err == f"qvl: error: {failed['error']}\n"
    assert (got["model"], got["was_here"]) == (hub.model, True) and "error" not in got
    hub.asked.clear()
    assert run("2b", "no-such-model", "--json")[:2] == (2, "") and not hub.asked


def test_two_files_with_the_same_bytes_come_once(hub: Hub, run: Run, store: Path) -> None:
    hub.files["generation_config.json"] = hub.files["preprocessor_config.json"]
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)
    same = ("generation_config.json", "preprocessor_config.json")
    assert len([asked for asked in hub.asked if asked.name in same]) == 1


def test_a_failure_before_anything_has_arrived_leaves_no_trace(hub: Hub, run: Run, store: Path) -> None:
    hub.status = lambda _: (404, {})
    assert run("2b")[0] == 1
    assert not list(store.rglob("*.partial"))
    with pytest.raises(CheckpointError, match=r"is not on this machine; get it with: qvl download 2b$"):
        locate(hub.model)


def test_infer_names_the_one_command_that_gets_a_missing_model(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home
    monkeypatch.setenv("QVL_OFFLINE", "1")
    assert qvl.cli.main(["infer", "--profile", "7b-base", "-p", "A photo of"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "qvl: error: Qwen/Qwen2-VL-7B is not on this machine; get it with: qvl download 7b-base\n",
    )


def test_a_published_layout_is_loaded_after_its_download(
    hub: Hub, run: Run, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    hub.misbehave = lambda asked: cut(100_000) if "Range" not in asked.headers else None
    assert run("2b")[0] == 0
    assert qvl.cli.main(["infer", "--profile", "2b", "-p", "Hello", "--max-new-tokens", "2", "--device", "cpu"]) == 0
    assert capsys.readouterr().out
    assert qvl.cli.main(["download", "--list", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert abs(model["last_used"] - time.time()) < 600


@pytest.mark.slow
def test_the_server_of_these_tests_speaks_as_the_hub_does(hub: Hub, tmp_path: Path) -> None:
    """The hub's own client downloads from it."""
    program = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(sys.argv[1]))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", program, hub.model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert all((folder / name).read_bytes() == data for name, data in hub.files.items())
