"""`qvl plan` as users run it."""

from __future__ import annotations

import json

import pytest

from tests.e2e.running import Run


def test_a_plan_on_the_screen(qvl: Run) -> None:
    code, out, err = qvl("plan", "--profile", "72b", "--devices", "4", "--machine", "h100")
    assert (code, err) == (0, "")
    assert out.startswith(
        "Qwen/Qwen2-VL-72B-Instruct in bfloat16 on 4 devices, profile 72b\n32768 tokens of context, 1"
    )
    assert "weights" in out and "KV cache" in out and "in 162 exchanges" in out
    assert [line.split()[0] for line in out.splitlines() if " a token, " in line] == ["H100"]
    code, out, _ = qvl("plan", "--profile", "72b")
    assert code == 0 and "nothing is sent" in out and out.count("does not fit in") == 5


def test_a_plan_as_json(qvl: Run) -> None:
    records = []
    for devices in ("1", "8"):
        code, out, _ = qvl("plan", "--profile", "7b-full", "--devices", devices, "--context", "1024", "--json")
        assert code == 0
        records.append(json.loads(out))
    one, eight = records
    assert one["command"] == "finetune" and one["device"]["tokens"] == 1024 and one["device"]["sent"] == 0
    assert eight["device"]["optimizer"] < one["device"]["optimizer"] and eight["device"]["sent"] > 0
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    assert sum(one["device"][part] for part in parts) == one["device"]["total"]
    for machine in eight["machines"]:
        assert machine["fits"] == (eight["device"]["total"] <= machine["memory"]) and machine["update_seconds"] > 0


def test_a_long_context_and_many_answers_take_more(qvl: Run) -> None:
    def planned(*arguments: str) -> dict[str, int]:
        code, out, _ = qvl("plan", "--profile", "2b", "--json", *arguments)
        assert code == 0
        device: dict[str, int] = json.loads(out)["device"]
        return device

    short, long, many = (
        planned("--context", "2048"),
        planned("--context", "32768"),
        planned("--context", "2048", "--batch", "3"),
    )
    assert long["cache"] == 16 * short["cache"] and many["cache"] == 3 * short["cache"]
    assert long["workspace"] > short["workspace"] and long["weights"] == short["weights"]


def test_devices_and_dtype_are_the_profiles_unless_a_flag_says_otherwise(qvl: Run) -> None:
    def planned(*arguments: str) -> tuple[int, str, int]:
        code, out, _ = qvl("plan", "--profile", "2b", "--json", *arguments)
        assert code == 0
        record = json.loads(out)
        return record["devices"], record["dtype"], record["device"]["weights"]

    sets = ("--set", "devices='0,1'", "--set", "dtype=float32")
    whole, parted = planned("--devices", "1"), planned(*sets)
    assert (whole[:2], parted[:2]) == ((1, "bfloat16"), (2, "float32"))
    assert whole[2] < parted[2] < 2 * whole[2]
    assert planned(*sets, "--devices", "1", "--dtype", "bfloat16") == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "7b", "--devices", "3"), "cannot be split in 3 equal parts; 2, 4 would do"),
        (("--machine", "h1000"), "one of A100-80G, H100, H200, A10, 4090 was expected, did you mean"),
        (("--dtype", "int8"), "--dtype int8: bfloat16, float16 or float32 was expected"),
        (("--profile", "2b-full", "--devices", "5"), "batch_size 32 is not a multiple of"),
        (("--profile", "2b", "--set", "quantize=int4"), "'qvl doctor' shows what they take"),
        (("--profile", "2b", "--set", "model=2b-awq"), "Instruct-AWQ is quantised, and quantised weights stay on one"),
        (("--profile", "2b-lora", "--set", "model=2b-awq"), "fine-tuning takes the original"),
        (("--profile", "2b-lora", "--set", "quantize=int4"), "quantised weights cannot learn"),
        (("--profile", "2b", "--context", "999999"), "Qwen/Qwen2-VL-2B-Instruct takes at most 32768 tokens"),
        (("--profile", "2b-lora", "--context", "9000"), "at most training.max_length=8192"),
        (("--profile", "72b-lora", "--dtype", "float16"), "training is in bfloat16 or float32, not in float16"),
        (("--profile", "2b-lora", "--batch", "2"), "--batch is of answers; an update takes"),
        (("--set", "devices='0,1'", "--set", "tensor_parallel=4"), "tensor_parallel=4 do not agree"),
    ],
)
def test_what_cannot_be_planned(qvl: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = qvl("plan", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_training_in_parts(qvl: Run) -> None:
    code, out, _ = qvl("plan", "--profile", "72b-lora", "--devices", "16")
    assert code == 0 and "each model on 8 devices" in out and "does not fit in 80" not in out
    code, _, err = qvl("plan", "--profile", "72b-lora", "--devices", "12")
    assert code == 2 and "12 devices cannot be shared out to models of 8" in err
