"""What `qvl doctor` shows, and what it says will not work."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qvl.hub.random_checkpoint import TINY
from qvl.model.config import ModelConfig
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import WIDTHS, Quantization, Scheme
from qvl.model.shapes import FULL_2B, FULL_72B
from qvl.runtime.cache import cache_bytes
from qvl.runtime.memory import weight_bytes
from tests.doctor.conftest import Run
from tests.unit.foreign_support import Form, read_tensors, write_foreign, write_tensors

GIB = 1024**3


def free(monkeypatch: pytest.MonkeyPatch, gib: float, size: float | None = None) -> None:
    """A machine with this much memory."""
    monkeypatch.setattr("qvl.machine.free_memory", lambda: int(gib * GIB))
    monkeypatch.setattr("qvl.machine.memory_size", lambda: int((size or gib) * GIB))


def as_json(result: tuple[int, str, str]) -> tuple[int, dict[str, Any]]:
    code, out, err = result
    assert err == "" and out.count("\n") == 1
    return code, json.loads(out)


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
def test_what_each_shape_takes_is_what_the_runtime_reckons(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 400)
    _, report = as_json(doctor("--json"))
    fits = {tuple(fit["profiles"]): fit for fit in report["fits"] if fit["quantize"] == "none"}
    assert set(fits) == {("demo",), ("2b", "2b-base"), ("7b", "7b-base"), ("72b", "72b-base")}
    small = fits["2b", "2b-base"]
    assert small["weights"] == weight_bytes(FULL_2B, "float32") == 4 * 2_208_985_600
    assert small["cache"] == cache_bytes(FULL_2B, 32768, "float32")
    assert small["total"] == small["weights"] + small["cache"] + max(small["vision"], small["prefill"])
    assert small["weights"] < small["least"] < small["total"]
    assert {fit["verdict"] for fit in report["fits"]} == {"full"}
    contexts = {fit["profiles"][0]: fit["usable_context"] for fit in report["fits"]}
    assert contexts == {"demo": 4096, "2b": 32768, "7b": 32768, "72b": 32768}


@pytest.mark.usefixtures("here")
def test_every_width_has_its_row(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 400)
    _, report = as_json(doctor("--json"))
    fits = [fit for fit in report["fits"] if "2b" in fit["profiles"]]
    assert [fit["quantize"] for fit in fits] == ["none", *WIDTHS]
    for fit in fits[1:]:
        assert fit["weights"] == weight_bytes(FULL_2B, "float32", (), Quantization.of(fit["quantize"]))
    whole, half, quarter, eighth = (fit["weights"] for fit in fits)
    assert whole > 1.99 * half > 3.9 * quarter > 4.5 * eighth
    rows = [line.split() for line in doctor()[1].splitlines() if "2b, 2b-base" in line]
    assert [row[2] for row in rows] == ["float32", *WIDTHS]


@pytest.mark.usefixtures("here")
def test_a_width_and_a_cache_that_are_asked_for_are_those_that_are_reckoned(
    doctor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 400)
    _, all_of_them = as_json(doctor("--json", "--quant", "int4", "--cache-dtype", "int8"))
    assert {fit["quantize"] for fit in all_of_them["fits"]} == {"int4"}
    code, report = as_json(doctor("--json", "--profile", "demo", "--quant", "int8", "--cache-dtype", "int8"))
    asked = next(fit for fit in report["fits"] if fit["asked"])
    assert (code, asked["quantize"]) == (0, "int8")
    assert asked["weights"] == weight_bytes(TINY, "float32", (), Quantization.of("int8"))
    assert asked["cache"] == cache_bytes(TINY, 32768, "int8")
    code, _, err = doctor("--quant", "int5")
    assert code == 2 and "--quant" in err and "bf16, int8, int4" in err


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
def test_a_smaller_machine_has_room_for_less_of_the_context(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = []
    for gib in (9.0, 9.5, 11.0, 14.0, 18.0):
        free(monkeypatch, gib)
        _, report = as_json(doctor("--json"))
        fit = next(fit for fit in report["fits"] if "2b" in fit["profiles"])
        assert fit["verdict"] == (
            "no" if gib < fit["least"] / GIB else "full" if gib >= fit["total"] / GIB else "short"
        )
        contexts.append(fit["usable_context"])
    assert contexts == sorted(contexts) and contexts[0] == 0 and contexts[-1] == 32768
    assert all(0 < context < 32768 for context in contexts[2:4])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("profile", ["7b", "72b"])
def test_a_profile_that_does_not_fit_is_a_problem(doctor: Run, monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    free(monkeypatch, 16)
    code, out, _ = doctor("--profile", profile)
    assert code == 1
    assert f"profile {profile} does not fit" in out and "there are 16.0 GiB" in out and "\nwell" not in out
    row = next(line for line in out.splitlines() if line.strip().startswith("> "))
    assert profile in row and "no, needs" in row


@pytest.mark.usefixtures("here")
def test_memory_that_others_hold_is_told_from_memory_that_is_not_there(
    doctor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 4, size=64)
    code, report = as_json(doctor("--json", "--profile", "7b"))
    assert code == 1
    assert next(fit for fit in report["fits"] if fit["asked"])["verdict"] == "busy"
    assert any("does not fit now" in problem and "close other programs" in problem for problem in report["problems"])
    out = doctor("--profile", "7b")[1]
    assert "busy, needs" in out and "busy: not in what is free now" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("here")
def test_a_shorter_context_is_another_question(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    free(monkeypatch, 400)
    arguments = ("--json", "--model", str(tiny_checkpoint), "--set")
    fits = [as_json(doctor(*arguments, f"max_context={tokens}"))[1]["fits"][0] for tokens in (4096, 8192)]
    assert [fit["context"] for fit in fits] == [4096, 8192]
    assert 2 * fits[0]["cache"] == fits[1]["cache"] == cache_bytes(TINY, 8192, "float32")
    assert all(fit["asked"] for fit in fits)


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
    assert len(report["ops"]["ops"]) == 5


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
def test_a_training_profile_is_measured_by_its_own_parts(
    doctor: Run, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    arguments = ("--json", "--profile", "2b-full", "--model", str(tiny_checkpoint))
    code, report = as_json(doctor(*arguments))
    need = report["training"]
    assert (code, need["fits"], need["profile"]) == (0, True, "2b-full")
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    assert need["total"] == sum(need[part] for part in parts) and all(need[part] > 0 for part in parts)
    free(monkeypatch, 0.001)
    code, report = as_json(doctor(*arguments))
    assert code == 1 and any("profile 2b-full does not fit" in problem for problem in report["problems"])
    monkeypatch.setattr("qvl.doctor.versions._version", lambda name: "" if name == "paddlenlp" else "1.0")
    assert "needs PaddleNLP" in " ".join(as_json(doctor(*arguments))[1]["problems"])


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
@pytest.mark.parametrize(
    ("model", "config", "language"),
    [
        ("2b-awq", FULL_2B, Scheme("int4", 128, False)),
        ("Qwen/Qwen2-VL-2B-Instruct-GPTQ-Int8", FULL_2B, Scheme("int8", 128)),
        ("72b-gptq-int4", replace(FULL_72B, intermediate_size=29696), Scheme("int4", 128)),
    ],
)
def test_a_published_quantised_model_is_reckoned_as_it_is_stored(
    model: str, config: ModelConfig, language: Scheme, doctor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 4000)
    _, report = as_json(doctor("--json", "--model", model))
    fits = [fit for fit in report["fits"] if fit["asked"]]
    assert [fit["quantize"] for fit in fits] == [language.kind]
    as_stored = Quantization(language.kind, language, None, None)
    assert fits[0]["weights"] == weight_bytes(config, "float32", (), as_stored)
    assert "2b" in {name for fit in report["fits"] if not fit["asked"] for name in fit["profiles"]}
    _, report = as_json(doctor("--json", "--model", model, "--quant", language.kind))
    whole = Quantization(language.kind, language, Scheme("int8"), Scheme("int8"))
    assert next(fit for fit in report["fits"] if fit["asked"])["weights"] == weight_bytes(config, "float32", (), whole)
    _, report = as_json(doctor("--json", "--model", model, "--quant", "bf16"))
    assert any("--quant bf16 takes the original" in problem for problem in report["problems"])


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
