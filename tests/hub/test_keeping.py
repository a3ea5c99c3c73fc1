"""`--list`, `--verify` and `--rm`: what is here, whether it is right, and how it goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qvl.hub import manifest
from qvl.hub.locate import locate
from tests.hub.answers import refuse
from tests.hub.conftest import BIG, INDEX, NEEDED, SHARDS, Run, is_model
from tests.hub.server import Hub
from tests.hub.test_store import in_huggingface_cache


def damage(path: Path) -> None:
    """Change a byte and nothing else; a link to the file elsewhere keeps what it has."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    times = path.stat()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, (times.st_atime, times.st_mtime))


def cached(hub: Hub, home: Path) -> Path:
    """The whole model in Hugging Face's cache."""
    source = home / "source"
    source.mkdir()
    for name in (*NEEDED, *SHARDS, INDEX):
        (source / name).write_bytes(hub.files[name])
    return in_huggingface_cache(source, home, hub.model)


def test_the_list_shows_size_state_source_use_and_place(hub: Hub, run: Run, store: Path) -> None:
    code, out, err = run("--list")
    assert (code, out) == (0, "") and "qvl download 2b" in err
    assert run("2b", "--source", "modelscope")[0] == 0
    locate(hub.model)
    code, out, _ = run("--list")
    heading, row = out.splitlines()
    assert code == 0 and heading.split() == ["MODEL", "SIZE", "STATE", "SOURCE", "LAST", "USED", "FOLDER"]
    assert row.split()[:5] == [hub.model, "620", "KB", "verified", "modelscope"] and row.endswith(
        str(store / hub.model)
    )


def test_the_list_in_json_has_every_field(hub: Hub, run: Run, home: Path) -> None:
    cached(hub, home)
    code, out, _ = run("--list", "--json")
    (model,) = json.loads(out)["models"]
    assert code == 0 and (model["id"], model["keeper"], model["state"]) == (hub.model, "huggingface", "unverified")
    assert model["bytes"] == sum(len(hub.files[name]) for name in (*NEEDED, *SHARDS, INDEX))
    assert run("--list", "7b")[1] == "", "a name leaves out the others"


def test_a_half_downloaded_model_is_listed_and_removed(hub: Hub, run: Run, store: Path) -> None:
    hub.misbehave = lambda asked: refuse(404) if asked.name == BIG else None
    assert run("2b", "--source", "hf")[0] == 1
    code, out, _ = run("--list", "--json")
    assert code == 0 and json.loads(out)["models"][0]["state"] == "partial"
    assert run("--rm", "2b")[0] == 0
    assert not (store / hub.model).parent.exists(), "nothing of it is left"


def test_removing_says_what_was_freed(hub: Hub, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    code, out, err = run("--rm", "2b")
    assert (code, out) == (0, "") and f"removed {hub.model}, 62" in err
    assert not (store / hub.model).parent.exists()
    code, _, err = run("--rm", "2b")
    assert code == 2 and "nothing that qvl has downloaded" in err


def test_what_other_tools_have_is_not_removed(hub: Hub, run: Run, home: Path) -> None:
    snapshot = cached(hub, home)
    code, _, err = run("--rm", "2b")
    assert code == 2 and "Hugging Face's cache, whose own tools remove it" in err
    assert (snapshot / BIG).exists()


def test_a_folder_that_qvl_did_not_make_is_not_removed(hub: Hub, run: Run, tmp_path: Path) -> None:
    assert hub
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    assert run("--rm", "2b", "--dir", str(tmp_path / "mine"))[0] == 2
    assert (tmp_path / "mine/notes.txt").exists()


def test_a_sound_model_is_verified_without_the_network(hub: Hub, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    before = manifest.read(store / hub.model)
    seen = len(hub.seen)
    code, out, _ = run("--verify", "--offline")
    assert (code, out) == (0, f"{hub.model}: {len(NEEDED) + 3} files, all right\n")
    after = manifest.read(store / hub.model)
    assert len(hub.seen) == seen and before is not None and after is not None
    assert after.verified_at > before.verified_at


@pytest.mark.parametrize("source", ["huggingface", "modelscope", "bos", "aistudio"])
@pytest.mark.parametrize("how", ["changed", "cut", "lost"])
def test_only_broken_files_are_repaired(hub: Hub, run: Run, store: Path, source: str, how: str) -> None:
    assert run("2b", "--source", source)[0] == 0
    folder = store / hub.model
    if how == "changed":
        damage(folder / BIG)
    elif how == "cut":
        os.truncate(folder / BIG, 10)
    else:
        (folder / BIG).unlink()
    sound = {path.name: path.stat().st_ino for path in folder.iterdir() if path.name != BIG}
    hub.asked.clear()
    code, out, err = run("--verify", "2b")
    assert code == 0 and "1 repaired" in out and f"broken: {BIG}" in err
    assert is_model(folder, hub) and hub.names() <= {BIG, INDEX} and hub.sent(BIG) == len(hub.files[BIG])
    assert all((folder / name).stat().st_ino == number for name, number in sound.items() if name != manifest.NAME)


def test_a_broken_model_offline_is_an_error_that_names_the_files(hub: Hub, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    damage(store / hub.model / BIG)
    code, _, err = run("--verify", "2b", "--offline")
    assert code == 1 and f"broken: {BIG}" in err


def test_a_repair_takes_no_bytes_of_a_newer_revision(hub: Hub, run: Run, store: Path) -> None:
    assert run("2b", "--source", "hf")[0] == 0
    folder = store / hub.model
    damage(folder / BIG)
    hub.commit, hub.files[BIG] = "f" * 40, hub.files[BIG][::-1]
    code, _, err = run("--verify", "2b", "--source", "hf")
    assert code == 1 and "could not be repaired" in err and "--rm" in err
    assert (folder / BIG).exists(), "what is there is left as it is"


def test_a_file_that_was_lost_comes_back_with_the_next_download(hub: Hub, run: Run, store: Path) -> None:
    assert run("2b")[0] == 0
    (store / hub.model / "tokenizer.json").unlink()
    hub.asked.clear()
    assert run("2b")[0] == 0
    assert is_model(store / hub.model, hub) and hub.names() == {"tokenizer.json"}


def test_another_tools_cache_is_checked_and_repaired_in_a_copy(hub: Hub, run: Run, home: Path, store: Path) -> None:
    snapshot = cached(hub, home)
    assert run("--verify", "2b", "--offline")[0] == 0
    blob = (snapshot / BIG).resolve()
    damage(blob)
    broken = blob.read_bytes()
    code, _, err = run("--verify", "2b", "--offline")
    assert code == 1 and f"broken or missing: {BIG}" in err
    code, out, _ = run("--verify", "2b")
    assert code == 0 and "1 repaired" in out
    assert is_model(store / hub.model, hub) and hub.names() == {BIG}
    assert blob.read_bytes() == broken, "the other tool's files are its own"
    assert (store / hub.model / SHARDS[1]).samefile(snapshot / SHARDS[1])
    assert locate(hub.model) == store / hub.model


def test_a_cache_without_links_is_checked_by_what_its_source_says(hub: Hub, run: Run, home: Path, store: Path) -> None:
    """As on Windows: files have their own names there, and nothing tells their digests."""
    hub.commit = "c" * 40  # that of the snapshot
    snapshot = cached(hub, home)
    for path in snapshot.iterdir():
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    assert run("--verify", "2b")[0] == 0
    damage(snapshot / BIG)
    code, _, err = run("--verify", "2b", "--offline")
    assert code == 1 and "keeps no digests" in err
    code, out, _ = run("--verify", "2b")
    assert code == 0 and "1 repaired" in out and is_model(store / hub.model, hub)


def test_pickled_weights_of_another_tool_do_not_keep_others_away(hub: Hub, run: Run, home: Path, store: Path) -> None:
    other = home / ".paddlenlp" / "models" / hub.model
    other.mkdir(parents=True)
    for name in NEEDED:
        (other / name).write_bytes(hub.files[name])
    (other / "model_state.pdparams").write_bytes(b"pickle")
    assert run("2b")[0] == 0
    assert is_model(store / hub.model, hub) and locate(hub.model) == store / hub.model


def test_a_cache_that_may_not_be_read_is_none(
    hub: Hub, run: Run, home: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(hub, home)
    real = Path.read_text

    def read_text(path: Path, *arguments: Any, **choices: Any) -> str:
        if path.name == "main" and path.parent.name == "refs":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **choices)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert run("2b")[0] == 0 and is_model(store / hub.model, hub)
    assert run("--list")[0] == 0 and locate(hub.model) == store / hub.model


def test_a_link_to_a_folder_is_followed_and_a_disk_is_refused(
    hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big")
    assert run("2b", "--dir", str(tmp_path / "link"))[0] == 0
    assert is_model(tmp_path / "big", hub) and (tmp_path / "link").is_symlink()
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    hub.asked.clear()
    code, _, err = run("2b", "--dir", str(tmp_path / "disk"))
    assert code == 1 and "name a folder inside it" in err and not hub.asked


def test_verifying_everything_takes_every_model(hub: Hub, run: Run, store: Path) -> None:
    assert run("--verify")[:2] == (0, "")
    assert run("2b")[0] == 0
    hub.model = "Qwen/Qwen2-VL-7B"
    assert run("7b-base")[0] == 0
    damage(store / hub.model / "merges.txt") if "merges.txt" in hub.files else damage(store / hub.model / BIG)
    code, out, _ = run("--verify", "--json")
    checked = {model["model"]: model["broken"] for model in json.loads(out)["models"]}
    assert code == 0 and checked == {"Qwen/Qwen2-VL-2B-Instruct": [], "Qwen/Qwen2-VL-7B": [BIG]}


def test_a_model_in_a_folder_of_ones_own_is_verified_and_removed(hub: Hub, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    assert run("2b", "--dir", str(folder))[0] == 0
    damage(folder / BIG)
    assert run("--verify", "--dir", str(folder))[0] == 0
    assert is_model(folder, hub)
    assert run("--rm", "--dir", str(folder))[0] == 0
    assert not folder.exists()


def test_a_model_that_fails_does_not_keep_the_others_from_being_checked(hub: Hub, run: Run, store: Path) -> None:
    first = hub.model
    assert run("2b")[0] == 0
    hub.model = "Qwen/Qwen2-VL-7B"
    assert run("7b-base")[0] == 0
    damage(store / first / BIG)
    code, out, err = run("--verify", "2b", "7b-base", "--offline", "--json")
    broken, sound = json.loads(out)["models"]
    assert code == 1 and broken["model"] == first and sound["model"] == hub.model and sound["broken"] == []
    assert f"broken: {BIG}" in broken["error"] and err == f"qvl: error: {broken['error']}\n"
    code, _, err = run("--rm", "2b", "7b", "7b-base")
    assert code == 1 and "nothing that qvl has downloaded" in err and err.count("removed ") == 2
    code, out, err = run("--rm", "2b", "7b-base", "--json")
    assert code == 2 and err.count("qvl: error: ") == 2, "none of them is there"
    assert all("nothing that qvl" in model["error"] for model in json.loads(out)["models"])


def test_the_name_beside_a_folder_has_to_be_what_is_there(hub: Hub, run: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "own")
    assert run("2b", "--dir", folder)[0] == 0
    for what in ("--verify", "--list"):
        assert run(what, "2b", "--dir", folder)[0] == 0
        code, out, err = run(what, "7b", "--dir", folder)
        assert (code, out) == (2, "") and f"{hub.model} is there, not Qwen/Qwen2-VL-7B-Instruct" in err


@pytest.mark.parametrize("flags", [["--source", "hf"], ["--jobs", "2"], ["--offline"]])
def test_a_list_fetches_nothing(hub: Hub, run: Run, flags: list[str]) -> None:
    assert hub
    code, out, err = run("--list", *flags)
    assert (code, out) == (2, "") and f"leave out {flags[0]}" in err


def test_two_things_at_once_are_a_wrong_request(hub: Hub, run: Run) -> None:
    assert hub
    assert run("--list", "--rm")[0] == 2 and run()[0] == 2 and run("--rm")[0] == 2


def test_two_broken_files_with_the_same_bytes_are_both_repaired(hub: Hub, run: Run, store: Path) -> None:
    hub.files["generation_config.json"] = hub.files["preprocessor_config.json"]
    assert run("2b")[0] == 0
    for name in ("generation_config.json", "preprocessor_config.json"):
        damage(store / hub.model / name)
    code, out, _ = run("--verify", "2b")
    assert code == 0 and "2 repaired" in out and is_model(store / hub.model, hub)
