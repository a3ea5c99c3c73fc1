"""What `list_models` says of folders that qvl, Hugging Face's tools, ModelScope's and PaddleNLP's have left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from qvl.hub import manifest, store
from qvl.hub.digest import hash_file
from qvl.hub.locate import find


def downloaded(source: Path, folder: Path, model: str) -> Path:
    """A copy of a checkpoint with the manifest that a download would write."""
    shutil.copytree(source, folder)
    files = tuple(
        manifest.FileRecord(path.name, path.stat().st_size, hash_file(path).sha256) for path in sorted(folder.iterdir())
    )
    manifest.write(folder, manifest.Manifest(model, "modelscope", "abc", files, 100.0, 200.0))
    return folder


def in_huggingface_cache(source: Path, home: Path, model: str) -> Path:
    repository = home / ".cache" / "huggingface" / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    for path in source.iterdir():
        blob = repository / "blobs" / hash_file(path).sha256
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


@pytest.mark.usefixtures("home")
def test_an_empty_machine_has_no_models() -> None:
    assert store.list_models() == ()


def test_a_downloaded_model_is_verified_until_a_file_is_cut(home: Path, tiny_checkpoint: Path) -> None:
    model = "Qwen/Qwen2-VL-2B"
    folder = downloaded(tiny_checkpoint, home / ".cache" / "qvl" / "models" / model, model)
    (found,) = store.list_models()
    assert (found.id, found.folder, found.keeper, found.source) == (model, folder, "qvl", "modelscope")
    assert (found.revision, found.verified_at, found.state) == ("abc", 200.0, "verified")
    assert found.bytes == sum(path.stat().st_size for path in tiny_checkpoint.iterdir())
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert store.list_models()[0].state == "incomplete"


def test_the_time_of_the_last_load_is_kept(home: Path, tiny_checkpoint: Path) -> None:
    model = "Qwen/Qwen2-VL-2B"
    folder = downloaded(tiny_checkpoint, home / ".cache" / "qvl" / "models" / model, model)
    store.note_use(folder)
    stamp = (folder / manifest.USED).stat().st_mtime
    assert store.list_models()[0].last_used == stamp


def test_models_of_other_tools_are_listed_where_they_are(home: Path, tiny_checkpoint: Path) -> None:
    snapshot = in_huggingface_cache(tiny_checkpoint, home, "Qwen/Qwen2-VL-7B")
    shutil.copytree(tiny_checkpoint, home / ".cache/modelscope/hub/models/Some/Model-1___5")
    shutil.copytree(tiny_checkpoint, home / ".paddlenlp/models/Qwen/Qwen2-VL-72B")
    other = home / ".cache/modelscope/hub/models/Some/Bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    found = {model.id: model for model in store.list_models()}
    assert {id_: (model.keeper, model.state) for id_, model in found.items()} == {
        "Qwen/Qwen2-VL-7B": ("huggingface", "unverified"),
        "Some/Model-1.5": ("modelscope", "unverified"),
        "Qwen/Qwen2-VL-72B": ("paddlenlp", "unverified"),
    }
    assert found["Qwen/Qwen2-VL-7B"].folder == snapshot
    assert all(find(id_) == model.folder for id_, model in found.items())


def test_half_a_download_is_partial_and_not_a_model(home: Path) -> None:
    partial = store.partial_folder(home / ".cache/qvl/models/Qwen/Qwen2-VL-2B")
    partial.mkdir(parents=True)
    (partial / "some.part").write_bytes(b"12345")
    (found,) = store.list_models()
    assert (found.id, found.state, found.bytes) == ("Qwen/Qwen2-VL-2B", "partial", 5)
    assert find("Qwen/Qwen2-VL-2B") is None


@pytest.mark.parametrize("name", ["Qwen/../etc", "../Qwen", "Qwen/..", "/Qwen", "a/b/c", "Qwen/", "~a/b", "a\\b/c"])
@pytest.mark.usefixtures("home")
def test_a_name_never_leads_out_of_the_store(name: str) -> None:
    from qvl.hub.places import is_hub_id, places

    assert not is_hub_id(name) and not list(places(name))
