"""What `qvl doctor` reckons that each model takes, and which fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qvl.hub.locate import locate
from qvl.hub.random_checkpoint import TINY
from qvl.model.config import ModelConfig
from qvl.model.quantization import WIDTHS, Quantization, Scheme
from qvl.model.shapes import FULL_2B, FULL_72B
from qvl.runtime.cache import cache_bytes
from qvl.runtime.memory import weight_bytes
from tests.doctor.conftest import Run
from tests.doctor.screens import GIB, as_json, free

pytestmark = pytest.mark.slow  # programs are started


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
    demo = ModelConfig.from_folder(locate("demo"))
    assert asked["weights"] == weight_bytes(demo, "float32", (), Quantization.of("int8"))
    assert asked["cache"] == cache_bytes(demo, demo.max_position_embeddings, "int8")
    code, _, err = doctor("--quant", "int5")
    assert code == 2 and "--quant" in err and "bf16, int8, int4" in err


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
def test_a_model_in_parts_is_reckoned_by_what_each_has_to_hold(doctor: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 400)
    asked = [
        next(fit for fit in as_json(doctor("--json", "--profile", "72b", *flags))[1]["fits"] if fit["asked"])
        for flags in ((), ("--set", "tensor_parallel=4"))
    ]
    assert asked[1]["weights"] == weight_bytes(FULL_72B, "float32", parts=4) < 0.3 * asked[0]["weights"]
    assert asked[1]["cache"] == asked[0]["cache"] // 4
    # On a CPU the parts are processes that share its memory.
    assert asked[1]["free"] == asked[0]["free"] // 4
    whole, parted = (
        as_json(doctor("--json", "--profile", "72b-lora", "--set", f"tensor_parallel={parts}"))[1]["training"]
        for parts in (1, 8)
    )
    assert parted["weights"] < 0.2 * whole["weights"] and parted["free"] == whole["free"] // 8


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
