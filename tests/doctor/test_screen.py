"""What `qvl doctor` shows, and what it says will not work."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import Quantization
from qvl.ops import status
from tests.doctor.conftest import Run
from tests.doctor.screens import as_json
from tests.unit.foreign_support import Form, read_tensors, write_foreign, write_tensors

pytestmark = pytest.mark.slow  # programs are started


@pytest.mark.usefixtures("here")
def test_one_screen_of_80_columns_and_no_colour_in_a_pipe(doctor: Run) -> None:
    code, out, err = doctor()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) < 50 and max(map(len, lines)) <= 80
    assert "\x1b" not in out and out.isascii()
    assert not [line for line in lines if line != line.rstrip()]
    labels = [line.split(" ")[0] for line in lines if not line.startswith(" ")]
    expected = ["qvl", "versions", "processor", "memory", "threads", "Paddle", "ops", "fits", "models", "well"]
    assert [label for label in labels if label in expected] == expected


@pytest.mark.usefixtures("here")
def test_looking_changes_nothing(doctor: Run, home: Path, tiny_checkpoint: Path) -> None:
    assert doctor("-q", "--profile", "demo") == (0, "", "")
    assert not home.exists()
    shutil.copytree(tiny_checkpoint, home / "models" / "Some" / "Model")
    before = sorted(home.rglob("*"))
    assert doctor("-q", "--model", "Some/Model") == (0, "", "")
    assert sorted(home.rglob("*")) == before


@pytest.mark.usefixtures("here")
def test_the_json_has_every_part(doctor: Run) -> None:
    import paddle

    from qvl import __version__
    from qvl.cli.document import DOCTOR_KEYS

    code, report = as_json(doctor("--json"))
    assert (code, report["ok"], report["problems"]) == (0, True, [])
    assert set(report) == set(DOCTOR_KEYS)
    assert report["versions"]["qvl"] == __version__
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["paddle"]["version"] == paddle.__version__
    assert (report["paddle"]["device"], report["paddle"]["dtype"]) == ("cpu", "float32")
    assert report["memory"]["total"] == psutil.virtual_memory().total
    bodies = {op["body"] for op in report["ops"]["ops"]}
    assert bodies <= {"native", "composed"} and ("native" in bodies) == report["ops"]["built"]
    asked = {"profile": None, "model": None, "device": "auto", "dtype": "auto", "threads": None}
    assert report["asked"] == {**asked, "quantize": "auto", "cache_dtype": "auto"}


@pytest.mark.usefixtures("here")
def test_quantised_weights_without_native_ops_are_remarked_on(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvl.ops.status.find_build", lambda: "no compiler was here")
    said = "quantised weights are many times slower than others without native ops: no compiler was here"
    assert said in as_json(doctor("--json", "--profile", "demo", "--quant", "int8"))[1]["remarks"]
    assert said not in as_json(doctor("--json", "--profile", "demo"))[1]["remarks"]


@pytest.mark.usefixtures("here")
def test_a_quantised_folder_is_known_and_what_is_wrong_with_it_said(
    doctor: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    quantise_folder(tiny_checkpoint, out, Quantization.of("int4"))
    code, report = as_json(doctor("--json", "--model", str(out)))
    assert code == 0 and next(fit for fit in report["fits"] if fit["asked"])["quantize"] == "int4"
    code, said, _ = doctor("-q", "--model", str(out), "--quant", "int8")
    assert code == 1 and "quantised to int4; --quant int8" in " ".join(said.split())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    code, said, _ = doctor("-q", "--model", str(out))
    assert code == 1 and "tensors are missing, model.layers.3" in " ".join(said.split())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "gpu"], "--device gpu: this is Paddle's CPU build"),
        (["--device", "gpu:3"], "--device gpu:3"),
        (["--dtype", "bfloat16"], "float32 only on a CPU"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all: no such model folder"),
        (["--model", "Somebody/Something"], "Somebody/Something is not on this machine"),
        (["--profile", "2b"], "Qwen/Qwen2-VL-2B-Instruct is not on this machine"),
        (["--profile", "2b-lora"], "Qwen/Qwen2-VL-2B-Instruct is not on this machine"),
        (["--threads", "1000000"], "--threads must be a whole number from 1 to "),
    ],
)
def test_a_flag_that_cannot_be_met_is_a_problem(doctor: Run, arguments: list[str], words: str) -> None:
    import paddle

    if "gpu" in words and paddle.device.is_compiled_with_cuda():
        pytest.skip("this is Paddle's GPU build")
    code, report = as_json(doctor("--json", *arguments))
    assert (code, report["ok"]) == (1, False)
    assert [problem for problem in report["problems"] if words in problem]
    assert report["fits"] and report["ops"]["ops"] and report["versions"]  # the rest is there all the same
    code, out, err = doctor("-q", *arguments)
    assert (code, err) == (1, "")
    assert all(line.startswith(("problem    ", " " * 11)) for line in out.splitlines())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("QVL_OPS", "native", "QVL_OPS=native: no compiler was here"),
        ("QVL_OPS", "nativ", "did you mean 'native'?"),
        ("QVL_THREADS", "many", "QVL_THREADS must be a whole number"),
        ("QVL_VIDEO_READER", "vlc", "QVL_VIDEO_READER=vlc is not known"),
    ],
)
def test_a_variable_that_cannot_be_met_is_a_problem(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setattr("qvl.ops.status.find_build", lambda: "no compiler was here")
    monkeypatch.setenv(name, value)
    code, report = as_json(doctor("--json"))
    assert code == 1
    assert len(report["problems"]) == 1 and words in report["problems"][0]
    assert report["environment"][name] == value
    assert [op["name"] for op in report["ops"]["ops"]] == list(status.NAMES)


@pytest.mark.usefixtures("here")
def test_ops_that_were_left_alone_on_purpose_are_no_problem(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_OPS", "composed")
    code, report = as_json(doctor("--json"))
    assert (code, report["ops"]["requested"], report["ops"]["error"]) == (0, "composed", "")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("arguments", [["--profile", "7q"], ["--device", "tpu"], ["--set", "max_contex=1"]])
def test_a_request_that_means_nothing_is_refused_as_elsewhere(doctor: Run, arguments: list[str]) -> None:
    code, out, err = doctor(*arguments)
    assert (code, out) == (2, "") and err.startswith("qvl: error: ")


@pytest.mark.usefixtures("here")
def test_a_model_that_is_here_and_whole_will_work(doctor: Run, tiny_checkpoint: Path) -> None:
    assert doctor("-q", "--model", str(tiny_checkpoint), "--threads", "1") == (0, "", "")
    code, out, _ = doctor("--model", str(tiny_checkpoint))
    assert code == 0 and "\nwell       profile 2b will work here\n" in out


def broken(folder: Path, way: str) -> None:
    weights = folder / "model.safetensors"
    if way == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif way == "no weights":
        weights.unlink()
    elif way == "no tokenizer":
        for name in ("tokenizer.json", "vocab.json", "merges.txt"):
            (folder / name).unlink()
    elif way == "bad config":
        (folder / "config.json").write_text("{")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("cut", "truncated"),
        ("no weights", "no weights there"),
        ("no tokenizer", "tokenizer"),
        ("bad config", "cannot be read as JSON"),
        ("a layer more", "tensors are missing, model.layers.3."),
    ],
)
def test_a_damaged_model_is_told_before_it_is_loaded(
    doctor: Run, tiny_checkpoint: Path, tmp_path: Path, way: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    broken(folder, way)
    code, report = as_json(doctor("--json", "--model", str(folder)))
    assert code == 1
    assert len(report["problems"]) == 1 and words in report["problems"][0] and str(folder) in report["problems"][0]


@pytest.mark.usefixtures("here")
def test_models_in_the_store_are_listed_with_their_state(doctor: Run, home: Path, tiny_checkpoint: Path) -> None:
    for name in ("Whole", "Cut"):
        shutil.copytree(tiny_checkpoint, home / "models" / "Some" / name)
    broken(home / "models" / "Some" / "Cut", "cut")
    code, report = as_json(doctor("--json"))
    assert code == 0  # nobody asked for the damaged one
    models = {model["id"]: model for model in report["models"]}
    assert models["Some/Whole"]["state"] == "unverified" and models["Some/Whole"]["error"] == ""
    assert models["Some/Cut"]["state"] == "damaged" and "truncated" in models["Some/Cut"]["error"]
    assert models["Some/Whole"]["bytes"] > 10**6
    out = doctor()[1]
    assert "damaged" in out and "remark     Some/Cut" in out and max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("here")
def test_a_profile_of_the_users_own_is_in_the_table_and_a_broken_one_in_the_remarks(
    doctor: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    (folder / "short.yaml").write_text("extends: 2b\nmax_context: 2048\n")
    (folder / "elsewhere.yaml").write_text("model: Some/Other\n")
    (folder / "odd.yaml").write_text("nonsense: 1\n")
    code, report = as_json(doctor("--json"))
    assert code == 0
    assert next(fit for fit in report["fits"] if fit["profiles"] == ["short"])["context"] == 2048
    said = "\n".join(report["remarks"])
    assert "profile odd cannot be used" in said and "profile elsewhere: Some/Other is not on this machine" in said


@pytest.mark.usefixtures("here")
def test_two_builds_of_paddle_and_no_reader_are_worth_a_remark(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"paddlepaddle": "3.3.1", "paddlepaddle-gpu": "3.3.1", "numpy": "1", "pillow": "1"}
    monkeypatch.setattr("qvl.doctor.versions._version", lambda name: there.get(name, ""))
    code, out, _ = doctor()
    assert code == 1  # tokenizers are not there, and every prompt needs them
    said = " ".join(out.split())
    assert "are both installed" in said and "no video reader is installed" in said
    assert "problem tokenizers is not installed" in said and "paddlenlp (not installed)" in said


@pytest.mark.usefixtures("here")
def test_no_secret_is_shown(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "QVL_API_KEY", "CUDA_SECRET_THING"):
        monkeypatch.setenv(name, "hidden-words")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:hidden-words@mirror.example")
    for arguments in ((), ("--json",)):
        out = doctor(*arguments)[1]
        assert "hidden-words" not in out and "mirror.example" in out


@pytest.mark.usefixtures("here")
def test_a_folder_of_awq_is_known_and_what_is_missing_said(doctor: Run, tmp_path: Path) -> None:
    packed, _ = write_foreign(tmp_path, Form("awq"), tokenizer=True)
    code, report = as_json(doctor("--json", "--model", str(packed)))
    assert code == 0 and next(fit for fit in report["fits"] if fit["asked"])["quantize"] == "int4"
    tensors = read_tensors(packed)
    del tensors["model.layers.0.mlp.up_proj.qzeros"]
    write_tensors(packed, tensors)
    code, said, _ = doctor("-q", "--model", str(packed))
    assert code == 1 and "1 tensors are missing, model.layers.0.mlp.up_proj.qzeros" in " ".join(said.split())
