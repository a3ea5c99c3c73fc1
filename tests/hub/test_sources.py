"""Which source is asked, what it is told of the user, and what is not believed of what it says."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from qvl.hub import manifest
from tests.hub.answers import Answer, Asked, cut, refuse
from tests.hub.conftest import BIG, INDEX, NOT_NEEDED, SHARDS, Run, is_model
from tests.hub.server import COMMIT, KEY, Hub

TOKEN = "hf_nobody_may_see_this"


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


def test_a_mirror_with_a_password_in_its_address(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http://", "http://me:secret@"))
    code, out, err = run("2b", "--source", "hf")
    assert code == 0 and "secret" not in out + err
    assert not any("Authorization" in headers for _, path, headers in hub.seen if path.startswith("/cdn/"))


def test_storage_that_says_403_of_what_is_not_there(hub: Hub, run: Run, store: Path) -> None:
    there = hub.files
    hub.status = lambda path: (403, {}) if path.startswith("/bos/") and path.rpartition("/")[2] not in there else None
    assert run("2b", "--source", "bos")[0] == 0
    assert is_model(store / hub.model, hub)
