"""What of AWQ and GPTQ checkpoints is refused, and what the section of config.json may leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.errors import CheckpointError, DeviceError, QvlError, UsageError
from qvl.model.foreign import Foreign, foreign_of, published_foreign
from qvl.model.quantization import chosen_quantization
from qvl.runtime.engine import Engine
from tests.unit.foreign_support import (
    Form,
    Written,
    assert_same_numbers,
    edit_config,
    read_tensors,
    write_foreign,
    write_tensors,
)
from tests.unit.quantized_support import engine


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_inputs_in_another_order_are_refused_with_the_reason(tmp_path: Path) -> None:
    packed, _ = write_foreign(tmp_path, Form("gptq", symmetric=True, order="permuted"), tokenizer=True)
    with pytest.raises(CheckpointError, match=r"g_idx: its inputs are grouped in another order \(desc_act\)"):
        engine(packed)


def test_desc_act_without_another_order_is_no_obstacle(foreign_copy: Callable[[str], Path], foreign: Written) -> None:
    folder = foreign_copy("gptq-int4")
    edit_config(folder, lambda data: data["quantization_config"].update(desc_act=True))
    assert_same_numbers(folder, foreign("gptq-int4")[1])


PROJECTION = "model.layers.1.mlp.down_proj"


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.pop(f"{PROJECTION}.{key}")


def _with(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({f"{PROJECTION}.{key}": change(tensors[f"{PROJECTION}.{key}"])})


@pytest.mark.filterwarnings("ignore:.*slow here")
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("awq", _without("qzeros"), r"down_proj\.qzeros is missing"),
        ("awq", _without("scales"), r"down_proj\.scales is missing"),
        ("gptq-int8", _without("qweight"), r"down_proj\.qweight is missing"),
        ("awq", _with("qweight", lambda a: a[:-8]), r"qweight has shape \[376, 32\], config.json asks for \[384, 32\]"),
        ("gptq-int4", _with("qzeros", lambda a: a[:, :-1]), r"qzeros has shape \[3, 31\]"),
        ("gptq-int4", _with("g_idx", lambda a: a[:-1]), r"g_idx has shape \[383\]"),
        ("gptq-int4", _with("qzeros", lambda a: a + 1), r"qzeros: not 8 everywhere, although config.json says symm"),
        ("gptq-int8", _with("qzeros", lambda a: a - 1), r"qzeros: not 128 everywhere"),
        ("awq", _with("scales", lambda a: a.astype(np.int32)), r"scales is stored as I32, not F16 or BF16 or F32"),
        ("awq", _with("qweight", lambda a: a.astype(np.float32)), r"qweight is stored as F32, not I32"),
        ("awq", _with("scales", lambda a: a.astype(np.float32) + 1e-9), r"scales: some have no exact float16"),
        ("awq", lambda t: t.update({"visual.blocks.0.attn.qkv.qweight": t["model.norm.weight"]}), "belongs to no part"),
    ],
)
def test_damage_is_named(
    name: str, damage: Callable[[dict[str, Any]], object], words: str, foreign_copy: Callable[[str], Path]
) -> None:
    folder = foreign_copy(name)
    tensors = read_tensors(folder)
    damage(tensors)
    write_tensors(folder, tensors)
    with pytest.raises(CheckpointError, match=words):
        engine(folder)


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("awq", {"version": "gemv"}, "version 'gemv'; of awq qvl reads 'gemm'"),
        ("awq", {"bits": 8}, "bits 8; of awq qvl reads 4"),
        ("awq", {"zero_point": False}, "zero_point False"),
        ("awq", {"modules_to_not_convert": ["visual", "down_proj"]}, "keeps down_proj unquantised"),
        ("gptq-int4", {"bits": 3}, "bits 3; of gptq qvl reads 4 and 8"),
        ("gptq-int4", {"group_size": 100}, "group_size 100"),
        ("gptq-int4", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq-int4", {"is_marlin_format": True}, "is_marlin_format True"),
        ("gptq-int8", {"sym": False}, "sym False; of gptq qvl reads symmetric weights of 8 bits"),
        ("gptq-int4", {"lm_head": True}, "the head is quantised too"),
        ("gptq-int4", {"dynamic": {"-:.*down.*": {}}}, r"treats layers differently \(dynamic\)"),
        ("gptq-int4", {"quant_method": "bitsandbytes"}, r"\(bitsandbytes\) are not supported; take the original"),
    ],
)
def test_a_variant_that_is_not_read_is_named_before_any_weight(
    name: str, said: dict[str, Any], words: str, foreign_copy: Callable[[str], Path]
) -> None:
    folder = foreign_copy(name)
    edit_config(folder, lambda data: data["quantization_config"].update(said))
    with pytest.raises(CheckpointError, match=words):
        Engine.open(model=folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("awq", ["version", "zero_point", "group_size", "modules_to_not_convert", "bits"]),
        ("gptq-int4", ["sym", "desc_act", "group_size", "true_sequential", "damp_percent"]),
    ],
)
def test_what_the_section_leaves_out_is_as_their_tools_have_it(
    name: str, left_out: list[str], foreign_copy: Callable[[str], Path], foreign: Written
) -> None:
    folder = foreign_copy(name)
    wanted = foreign_of(folder)
    edit_config(folder, lambda data: [data["quantization_config"].pop(key) for key in left_out])
    assert foreign_of(folder) == wanted
    edit_config(folder, lambda data: data["quantization_config"].update(modules_to_not_convert=None, dynamic=None))
    assert foreign_of(folder) == wanted
    assert_same_numbers(folder, foreign(name)[1])


def test_what_does_not_go_together_is_explained(foreign: Written, tmp_path: Path) -> None:
    packed, _ = foreign("awq")
    for asked in ("int8", "bf16", "none"):
        with pytest.raises(UsageError, match=rf"quantised to int4 by AWQ; --quant {asked} takes the original"):
            Engine.open(model=packed, quantize=asked, device="cpu")
    with pytest.raises(UsageError, match="quantised to int8 by GPTQ; --quant int4 takes the original"):
        Engine.open(model=foreign("gptq-int8")[0], quantize="int4", device="cpu")
    with pytest.raises(DeviceError, match=r"what AWQ has quantised runs on CPUs; .*--quant int4"):
        chosen_quantization("auto", packed, "gpu:0", "bfloat16")
    with pytest.raises(QvlError, match="qvl quantize"):
        Engine.open(model=packed, device="cpu").save(tmp_path / "saved")


def test_the_published_ones_are_known_by_name() -> None:
    assert published_foreign("Qwen/Qwen2-VL-2B-Instruct-AWQ") == Foreign("awq", 4, 128, False)
    assert published_foreign("Qwen/Qwen2-VL-7B-Instruct-GPTQ-Int4") == Foreign("gptq", 4, 128, True, True)
    assert published_foreign("Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int8") == Foreign("gptq", 8, 128, True, True)
    assert published_foreign("Qwen/Qwen2-VL-2B-Instruct") is published_foreign("me/Qwen2-VL-2B-AWQ") is None
