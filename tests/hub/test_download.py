"""`qvl download` from each source: the right files, once, from where they were asked for."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

import qvl.cli
from qvl.errors import CheckpointError
from qvl.hub import manifest
from qvl.hub.locate import find, locate
from qvl.hub.names import PUBLISHED
from tests.hub.answers import Answer, Asked, cut, refuse
from tests.hub.conftest import BIG, INDEX, NEEDED, NOT_NEEDED, SHARDS, Run, is_model
from tests.hub.server import COMMIT, KEY, Hub
from tests.hub.test_store import in_huggingface_cache

TOKEN = "hf_nobody_may_see_this"


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


def test_auto_goes_on_to_the_next_source_and_says_so(hub: Hub, run: Run, store: Path) -> None:
    hub.status = lambda path: (404, {}) if path.startswith("/api/models") else None
    code, _, err = run("2b")
    assert code == 0 and "Hugging Face" in err and "does not have it (404); trying the next source" in err
    record = manifest.read(store / hub.model)
    assert record is not None and record.source == "modelscope"


def test_a_source_that_was_asked_for_is_the_only_one(hub: Hub, run: Run, store: Path) -> None:
    hub.status = lambda path: (404, {}) if path.startswith("/api/models") else None
    code, out, err = run("2b", "--source", "hf")
    assert (code, out) == (1, "") and "does not have it (404)" in err
    assert not any(path.startswith("/ms") for _, path, _ in hub.seen)
    assert not (store / hub.model).exists()


@pytest.mark.parametrize("how", ["flag", "variable", "profile"])
def test_the_order_of_sources_is_the_users(
    hub: Hub, run: Run, home: Path, store: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    flags = []
    if how == "flag":
        monkeypatch.setenv("QVL_SOURCE", "bos")
        flags = ["--source", "aistudio,auto"]
    elif how == "variable":
        monkeypatch.setenv("QVL_SOURCE", "aistudio,hf")
    else:
        profiles = home / ".config/qvl/profiles"
        profiles.mkdir(parents=True)
        (profiles / "2b.yaml").write_text("extends: 2b\nsource: aistudio,modelscope\n")
    assert run("2b", *flags)[0] == 0
    record = manifest.read(store / hub.model)
    assert record is not None and record.source == "aistudio"


def test_an_unknown_source_is_a_wrong_request(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run("2b", "--source", "modelscop")
    assert code == 2 and "did you mean 'modelscope'" in err
    monkeypatch.setenv("HF_ENDPOINT", "not a server")
    code, _, err = run("2b")
    assert code == 2 and "HF_ENDPOINT" in err
    assert not hub.seen


def test_half_of_a_file_from_one_source_is_completed_by_another(hub: Hub, run: Run, store: Path) -> None:
    size = len(hub.files[BIG])

    def misbehave(asked: Asked) -> Answer | None:
        if asked.name != BIG or asked.path.startswith("/ms"):
            return None
        return cut(size // 2) if "Range" not in asked.headers else refuse(404)

    hub.misbehave = misbehave
    code, _, err = run("2b", "--jobs", "1")
    assert code == 0 and "trying the next source" in err
    assert is_model(store / hub.model, hub)
    assert hub.sent(BIG) == size and hub.sent() < sum(map(len, hub.files.values())), "nothing came twice"


def test_a_mirror_that_states_no_sizes_is_asked_file_by_file(hub: Hub, run: Run, store: Path) -> None:
    hub.states_sizes = False
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)
    record = manifest.read(store / hub.model)
    assert record is not None
    kinds = {entry.path: entry.stated.kind for entry in record.files if entry.stated}
    assert kinds[BIG] == "sha256"
    heads = [path for method, path, _ in hub.seen if method == "HEAD"]
    assert not any(name in path for name in NOT_NEEDED for path in heads)


def test_files_of_two_revisions_never_mix(hub: Hub, run: Run, store: Path) -> None:
    """The branch moves while the first file is on its way: every address has the commit of the list in it."""
    assert run("2b", "--source", "hf")[0] == 0
    asked = [path for _, path, _ in hub.seen if "/resolve/" in path]
    assert asked and all(f"/resolve/{COMMIT}/" in path for path in asked)
    assert is_model(store / hub.model, hub)


def test_weights_in_paddles_own_format_are_taken_when_there_is_nothing_else(hub: Hub, run: Run, store: Path) -> None:
    for name in (INDEX, *SHARDS):
        del hub.files[name]
    hub.files["model_state.pdparams"] = b"pickled" * 5000
    assert run("2b", "--source", "bos")[0] == 0
    assert (store / hub.model / "model_state.pdparams").read_bytes() == hub.files["model_state.pdparams"]


def test_a_source_without_digests_is_checked_by_size_and_structure(hub: Hub, run: Run, store: Path) -> None:
    hub.states_digests = False
    code, _, err = run("2b", "--source", "bos")
    assert code == 1 and "no whole model" in err, "noise is not safetensors"
    assert not (store / hub.model).exists()


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/../../b.json", "c:\\x.json", "x\n.json"])
@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_names_that_lead_out_of_the_folder_are_refused(hub: Hub, run: Run, store: Path, source: str, name: str) -> None:
    hub.files[name] = b"evil"
    code, _, err = run("2b", "--source", source)
    assert code == 1 and "leads out of the model's folder" in err and "\n." not in err
    assert not hub.names() and not (store / hub.model).exists()


def test_an_index_that_leads_out_of_the_folder_is_refused(hub: Hub, run: Run) -> None:
    hub.files[INDEX] = json.dumps({"weight_map": {"x": "../../x.safetensors"}}).encode()
    code, _, err = run("2b", "--source", "bos")
    assert code == 1 and "leads out" in err


@pytest.mark.parametrize(
    ("source", "variable", "sent"),
    [
        ("hf", "HF_TOKEN", f"Bearer {TOKEN}"),
        ("modelscope", "MODELSCOPE_API_TOKEN", f"m_session_id={TOKEN}"),
        ("aistudio", "AISTUDIO_ACCESS_TOKEN", f"token {TOKEN}"),
    ],
)
def test_a_token_goes_to_its_source_and_nowhere_else(
    hub: Hub, run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, source: str, variable: str, sent: str
) -> None:
    hub.token = TOKEN
    (home / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    code, _, err = run("2b", "--source", source)
    assert code == 1 and "401" in err and "token" in err
    monkeypatch.setenv(variable, TOKEN)
    hub.seen.clear()
    code, out, err = run("2b", "--source", source, "--debug")
    assert code == 0 and TOKEN not in out + err
    for _, path, headers in hub.seen:
        given = headers.get("Authorization") or headers.get("Cookie")
        assert given == (None if path.startswith("/cdn/") else sent)


def test_a_token_file_is_read(hub: Hub, run: Run, home: Path) -> None:
    hub.token = TOKEN
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(f"{TOKEN}\n")
    assert run("2b", "--source", "hf")[0] == 0


def test_no_error_shows_a_token_or_a_signed_address(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    host = hub.url.removeprefix("http://")
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{TOKEN}@{host}")
    monkeypatch.setenv("QVL_DOWNLOAD_TRIES", "2")
    for wrong in (refuse(403), refuse(500), refuse(410), refuse(302, {"Location": f"http://localhost:1/x?{KEY}"})):
        hub.misbehave = lambda _, wrong=wrong: wrong  # type: ignore[misc]
        code, out, err = run("2b", "--source", "hf", "--debug")
        assert code == 1
        assert TOKEN not in out + err and KEY not in out + err


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


def test_a_folder_with_something_else_in_it_is_left_alone(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    code, _, err = run("2b", "--dir", str(tmp_path / "mine"))
    assert code == 1 and "no whole model" in err and not hub.seen
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_touches_no_network(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    flags = ["--offline"] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv("QVL_OFFLINE", "1")
    code, _, err = run("2b", *flags)
    assert code == 1 and "offline" in err.lower()
    assert not hub.seen


def test_json_says_what_was_done(hub: Hub, run: Run, store: Path) -> None:
    code, out, err = run("2b", "--json")
    (got,) = json.loads(out)["models"]
    assert code == 0 and err == ""
    assert (got["model"], got["folder"], got["source"]) == (hub.model, str(store / hub.model), "huggingface")
    assert got["bytes"] == hub.sent() and not got["was_here"]


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


def test_a_mirror_with_a_password_in_its_address(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http://", "http://me:secret@"))
    code, out, err = run("2b", "--source", "hf")
    assert code == 0 and "secret" not in out + err
    assert not any("Authorization" in headers for _, path, headers in hub.seen if path.startswith("/cdn/"))


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
