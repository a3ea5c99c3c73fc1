"""Checkpoints that AWQ and GPTQ have quantised: each layout against its numbers in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import CheckpointError
from qvl.model.foreign import Foreign, is_projection
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import Quantization, Scheme, stored_quantization
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_bits
from qvl.model.shapes import parameter_shapes
from qvl.ops import native
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from tests.unit.foreign_support import (
    FORMS,
    WIDE,
    Form,
    Written,
    assert_same_numbers,
    edit_config,
    read_tensors,
    write_foreign,
    write_tensors,
)
from tests.unit.ops.test_linear import each_level
from tests.unit.quantized_support import QUESTION, cosine, difference, engine
from tests.unit.test_quantized_model import BUILT, FLOAT32, ROUNDED


@pytest.mark.parametrize("name", FORMS)
def test_every_number_is_that_of_the_format(name: str, foreign: Written) -> None:
    assert_same_numbers(*foreign(name))


def test_a_last_group_that_is_not_full_and_inputs_that_need_padding(tmp_path: Path) -> None:
    narrow = replace(WIDE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=200)
    narrow = replace(narrow, vision_config=replace(WIDE.vision_config, hidden_size=64))
    for number, form in enumerate((Form("gptq", group=64), Form("gptq", 8, symmetric=True), Form("gptq", group=-1))):
        assert_same_numbers(*write_foreign(tmp_path / str(number), form, narrow))


@pytest.mark.parametrize("name", ["awq", "gptq-int4", "gptq-int4-asymmetric", "gptq-int8", "gptq-int8-whole"])
@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=BUILT)])
def test_logits_are_those_of_the_dequantised_weights(name: str, mode: str, foreign: Written) -> None:
    packed, plain = foreign(name)
    with native.using(mode):  # type: ignore[arg-type]
        if mode == "composed":
            with pytest.warns(UserWarning, match="weights are slow here"):
                loaded = engine(packed)
        else:
            loaded = engine(packed)
        got, wanted = loaded.next_logits(QUESTION), engine(plain).next_logits(QUESTION)
    width = "int8" if "int8" in name else "int4"
    assert loaded.quantization is not None and loaded.quantization.width == width
    assert difference(got, wanted) < (FLOAT32 if mode == "composed" else ROUNDED[width])
    assert cosine(got, wanted) > 0.999


@each_level
def test_the_lowest_code_of_int8_is_not_lost_in_any_kernel(level: str, foreign: Written) -> None:
    """-128, which qvl's own quantising never makes."""
    packed, plain = foreign("gptq-int8")
    with native.using("native", level=level):
        got, wanted = engine(packed).next_logits(QUESTION), engine(plain).next_logits(QUESTION)
    assert difference(got, wanted) < ROUNDED["int8"]
    assert cosine(got, wanted) > 0.999


def _held(loaded: Engine) -> int:
    from qvl.model.packed import projections
    from tests.unit.quantized_support import packed_weights

    held = sum(4 * parameter.size for parameter in loaded.model.parameters())
    for weight in (weight for layer in projections(loaded.model) for weight in packed_weights(layer)):
        held += weight.matrix.nbytes + (0 if weight.bias is None else weight.bias.nbytes)
    return int(held)


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_what_is_not_quantised_stays_float32_unless_asked_for(foreign: Written) -> None:
    packed, _ = foreign("awq")
    loaded = engine(packed)
    layers = Scheme("int4", 128, False)
    assert loaded.quantization == Quantization("int4", layers, None, None)
    assert memory.weight_bytes(loaded.config, "float32", (), loaded.quantization) == _held(loaded)
    rest = engine(packed, "int4")
    assert rest.quantization == Quantization("int4", layers, Scheme("int8"), Scheme("int8"))
    assert cosine(rest.next_logits(QUESTION), loaded.next_logits(QUESTION)) > 0.99


@pytest.mark.filterwarnings("ignore:.*slow here")
@pytest.mark.parametrize("name", ["awq", "gptq-int8"])
def test_a_stored_copy_has_the_same_numbers(name: str, foreign: Written, tmp_path: Path) -> None:
    packed, _ = foreign(name)
    loaded = engine(packed)
    assert loaded.quantization is not None
    seen: list[tuple[int, int]] = []
    quantise_folder(packed, tmp_path / "out", loaded.quantization, on_progress=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1]
    stored = engine(tmp_path / "out")
    assert stored_quantization(tmp_path / "out") == stored.quantization == loaded.quantization
    np.testing.assert_array_equal(stored.next_logits(QUESTION), loaded.next_logits(QUESTION))


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_biases_of_nothing_and_a_tied_head_are_left_out(foreign_copy: Callable[[str], Path], foreign: Written) -> None:
    folder = foreign_copy("gptq-int4")
    tensors = read_tensors(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for layer in range(WIDE.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.o_proj.bias"] = np.zeros(256, np.float16)
        tensors[f"model.layers.{layer}.mlp.gate_proj.bias"] = np.zeros(384, np.float16)
    write_tensors(folder, tensors)
    same = engine(foreign("gptq-int4")[0]).next_logits(QUESTION)
    np.testing.assert_array_equal(engine(folder).next_logits(QUESTION), same)
    tensors["model.layers.1.self_attn.o_proj.bias"][7] = 1
    write_tensors(folder, tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj\.bias belongs to no part"):
        engine(folder)


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_newer_names_and_scales_in_bfloat16_are_read(foreign_copy: Callable[[str], Path], foreign: Written) -> None:
    folder = foreign_copy("gptq-int4")
    tensors = read_tensors(folder)
    scales = [name for name in tensors if name.endswith(".scales")]
    for name in scales:
        tensors[name] = bfloat16_bits(tensors[name].astype(np.float32))
    short = {name.replace("model.", "model.language_model."): array for name, array in tensors.items()}
    write_tensors(folder, {("model." + n if n.startswith("visual.") else n): a for n, a in short.items()})
    got = engine(folder).next_logits(QUESTION)
    assert difference(got, engine(foreign("gptq-int4")[1]).next_logits(QUESTION)) < 0.1


def test_only_the_layers_of_the_files_are_taken_apart(foreign: Written) -> None:
    """The support packs as the tools do: an official file has just these tensors of a projection."""
    with SafetensorsFile(foreign("awq")[0] / "model.safetensors") as file:
        names = {name.rpartition(".")[2] for name in file.tensors if "down_proj" in name}
        assert names == {"qweight", "qzeros", "scales"}
        assert file.tensors["model.layers.0.mlp.down_proj.qweight"].shape == (384, 256 // 8)
    with SafetensorsFile(foreign("gptq-int4")[0] / "model.safetensors") as file:
        names = {name.rpartition(".")[2] for name in file.tensors if "down_proj" in name}
        assert names == {"qweight", "qzeros", "scales", "g_idx"}
        assert file.tensors["model.layers.0.mlp.down_proj.qweight"].shape == (384 // 8, 256)


MEASURE = """
import sys
from pathlib import Path
from qvl import environment
environment.prepare()
import paddle
from qvl.model.config import ModelConfig
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import chosen_quantization
from qvl.runtime.memory import peak_bytes, weight_bytes
folder = Path(sys.argv[1])
config, chosen = ModelConfig.from_folder(folder), chosen_quantization("auto", folder, "cpu", "float32")
paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))
before = peak_bytes()
model = load_quantised(folder, config, chosen)
print(peak_bytes() - before, weight_bytes(config, "float32", (), chosen))
"""


@pytest.mark.slow
def test_loading_takes_the_result_and_a_matrix_in_pieces(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 64, "num_key_value_heads": 16, "num_hidden_layers": 12}
    config = replace(WIDE, hidden_size=1024, intermediate_size=8192, **heads)
    config = replace(config, vision_config=replace(config.vision_config, hidden_size=1024))
    random, form, tensors = np.random.default_rng(0), Foreign("awq", 4, 128, False), {}
    for name, shape in parameter_shapes(config).items():
        if is_projection(name):
            for key, size in form.shapes(*shape).items():
                numbers = random.integers(0, 2**31, size, np.int32)
                module = name.removesuffix(".weight")
                tensors[f"{module}.{key}"] = np.full(size, 0.001, np.float16) if key == "scales" else numbers
        else:
            tensors[name] = np.zeros(shape, np.float16)
    write_tensors(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    edit_config(tmp_path, lambda data: data.update(quantization_config=Form("awq").section))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    taken, result = map(int, run.stdout.split())
    assert result > 160 * 2**20
    # A matrix is 4 MB here, and a block of codes of each of a few threads 8 MB, in some copies.
    assert taken < result + 100 * 2**20 < 2 * result
