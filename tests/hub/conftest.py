"""A home of its own for every test, a model made of noise on a server of its own, and `qvl` in this process."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import qvl.cli
from tests.hub.server import Hub

Run = Callable[..., tuple[int, str, str]]

NEEDED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
BIG = SHARDS[0]
NOT_NEEDED = (".gitattributes", "README.md", "pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors")
_LEADING_AWAY = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODELSCOPE_CACHE", "PPNLP_HOME", "AISTUDIO_HOME")
_OTHERS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "MODELSCOPE_API_TOKEN", "AISTUDIO_ACCESS_TOKEN")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def model_files() -> dict[str, bytes]:
    """A model as a hub has it: what is needed, and other formats of the same. The weights are noise."""
    files = {name: json.dumps({"made": name}).encode() for name in NEEDED}
    files["config.json"] = json.dumps({"model_type": "qwen2_vl"}).encode()
    files["tokenizer.json"] = noise(20_000, 1)
    for seed, name in enumerate(SHARDS):
        files[name] = noise(300_000 + seed, 10 + seed)
    files[INDEX] = json.dumps({"weight_map": {f"tensor.{name}": name for name in SHARDS}}).encode()
    return files | {name: noise(5000, 99) for name in NOT_NEEDED}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in it, and no variable that leads out of it."""
    for name in (*_LEADING_AWAY, *_OTHERS, "QVL_HOME", "QVL_OFFLINE", "QVL_SOURCE", "QVL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path / ".config" / "qvl"))
    # huggingface_hub reads its variables once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / ".cache/huggingface/token"))
    return tmp_path


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the model, which every source finds; waits are short."""
    assert home
    with Hub(model_files()) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("QVL_DOWNLOAD_TIMEOUT", "20")
        monkeypatch.setattr("qvl.hub.web.Patience.pause", lambda _self, _failures: 0.01)
        yield hub


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(...)` is `qvl download ...`: the exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = qvl.cli.main(["download", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def store(home: Path) -> Path:
    return home / ".cache" / "qvl" / "models"


def is_model(folder: Path, hub: Hub) -> bool:
    """Whether a folder has the needed files, with their bytes, and no others but qvl's own."""
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".qvl")}
    wanted = {*NEEDED, *SHARDS, INDEX}
    return there == wanted and all((folder / name).read_bytes() == hub.files[name] for name in wanted)


def nothing_kept(store: Path, hub: Hub) -> bool:
    """Whether there is no folder with the model's name."""
    return not (store / hub.model).exists()


def one_error(code: int, out: str, err: str) -> bool:
    """Whether a run ended in one line of error and printed no folder."""
    errors = [line for line in err.splitlines() if line.startswith("qvl: error:")]
    return code == 1 and out == "" and len(errors) == 1
