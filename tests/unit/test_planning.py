"""The numbers for devices that are not here: what parts truly hold, and what docs/scaling.md says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from qvl.doctor.subjects import subject_of
from qvl.errors import UsageError
from qvl.model.part import Part
from qvl.model.shapes import FULL_72B, TINY
from qvl.model.weights import empty_model
from qvl.planning.inference import InferencePlan, InferenceSetting, plan_inference
from qvl.planning.machines import MACHINES, Machine
from qvl.planning.tables import inference_rows, markdown, training_rows
from qvl.planning.training import plan_training
from qvl.profile import Profile, load_profile
from qvl.runtime.cache import KVCache, cache_bytes

DOCS = Path(__file__).parents[2] / "docs"


def setting(devices: int, batch: int = 1, context: int = 1000) -> InferenceSetting:
    picture = subject_of(Profile(model="Qwen/Qwen2-VL-2B", max_pixels=28 * 28 * 100)).picture
    return InferenceSetting(TINY, picture, "float32", "float32", devices, context, 100, batch)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_weights_and_caches_are_those_of_a_part(devices: int) -> None:
    plan = plan_inference(setting(devices, batch=3))
    model = empty_model(TINY, "float32", part=Part(0, devices))
    assert plan.weights == sum(int(parameter.size) for parameter in model.parameters()) * 4
    share = Part(0, devices).share(TINY)
    cache = KVCache(share, 1000, "float32")
    assert plan.cache == 3 * cache_bytes(share, 1000, "float32") == 3 * cache.untouched


def test_what_is_sent_is_that_of_a_ring() -> None:
    assert plan_inference(setting(1)).sent == 0
    # Three layers with two sums each and the embedding, of 64 numbers of 4 bytes; and 1024 logits.
    assert plan_inference(setting(2)).sent == 7 * 64 * 4 + 512 * 4
    assert plan_inference(setting(4, batch=5)).sent == 5 * (7 * 1.5 * 64 * 4 + 768 * 4)
    assert plan_inference(setting(4)).exchanges == 8


def test_more_devices_hold_less_and_send_more() -> None:
    config = replace(setting(1), config=FULL_72B, dtype="bfloat16", cache_dtype="bfloat16", context=32768)
    plans = [plan_inference(replace(config, devices=devices)) for devices in (1, 2, 4, 8, 16)]
    for one, other in pairwise(plans):
        assert other.total < one.total and other.sent > one.sent and other.prompt_flops < one.prompt_flops
    assert plans[3].cache == plans[4].cache  # sixteen share eight key heads


def test_times_are_sums_of_their_parts() -> None:
    machine = Machine("made up", 1, bandwidth=1e9, flops=1e12, link=1e8, between_nodes=1e6, per_node=4, latency=1e-3)
    plan = InferencePlan(0, 0, 0, 2_000_000_000, 50_000_000, 10, 1_000_000, 3e12)
    assert plan.step_seconds(machine, 1) == pytest.approx(2 + 0.5)
    assert plan.step_seconds(machine, 4) == pytest.approx(2 + 0.5 + 0.01)
    assert plan.step_seconds(machine, 8) == pytest.approx(2 + 50 + 0.01)
    assert plan.prompt_seconds(machine, 4) == pytest.approx(3 + 0.01)


def test_training_divides_what_devices_share() -> None:
    options = replace(load_profile("2b-full").training, batch_size=64, micro_batch_size=1)
    plans = {
        (devices, sharding): plan_training(
            TINY, replace(options, sharding=sharding), dtype="bfloat16", devices=devices, tokens=200
        )
        for devices in (1, 8)
        for sharding in ("none", "stage1")
    }
    one, alone = plans[1, "stage1"], plans[8, "none"]
    assert one.sent == 0 and alone.memory == one.memory
    assert plans[8, "stage1"].memory.optimizer < one.memory.optimizer / 2
    assert plans[8, "stage1"].sent < alone.sent
    assert plans[8, "stage1"].flops == one.flops / 8


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be split in 3 equal parts"):
        plan_inference(setting(3))


def test_the_document_has_these_numbers() -> None:
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert markdown(inference_rows()) in text and markdown(training_rows()) in text, (
        "run python -m qvl.planning.tables and put what it prints into docs/scaling.md"
    )
    assert all(machine.name in text for machine in MACHINES)


def test_parts_of_a_model_hold_less_and_exchange_what_layers_give() -> None:
    options = replace(
        load_profile("2b-full").training, batch_size=64, micro_batch_size=1, sharding="none", recompute=False
    )
    plans = {
        (devices, parts): plan_training(TINY, options, dtype="bfloat16", devices=devices, tokens=200, parts=parts)
        for devices, parts in ((1, 1), (2, 2), (4, 2), (8, 1))
    }
    whole, parts, both = plans[1, 1], plans[2, 2], plans[4, 2]
    model = empty_model(TINY, "bfloat16", part=Part(0, 2))
    assert parts.memory.weights == both.memory.weights == 2 * sum(int(p.size) for p in model.parameters())
    assert parts.memory.gradients < whole.memory.gradients and parts.memory.activations < whole.memory.activations
    # 64 samples of 200 tokens; three layers with two sums each way, the embedding and the head; 64 numbers of 2 bytes.
    assert parts.sent == parts.sent_in_parts == 64 * 200 * (3 * 4 + 2) * 64 * 2
    assert both.sent_in_parts == parts.sent / 2
    assert both.sent - both.sent_in_parts == both.memory.gradients // 4 * 8 / 2
    assert plans[8, 1].sent_in_parts == 0
    machine = Machine("made up", 1, bandwidth=1e9, flops=1e12, link=1e8, between_nodes=1e6, per_node=2, latency=0)
    near, far = both.sent_in_parts / 1e8, (both.sent - both.sent_in_parts) / 1e6
    assert both.step_seconds(machine, 4) == pytest.approx(both.flops / 1e12 + near + far)
