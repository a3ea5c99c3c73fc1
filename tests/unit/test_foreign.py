"""Checkpoints that AWQ and GPTQ have quantised: each layout against its numbers in float32, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.errors import CheckpointError, DeviceError, QvlError, UsageError
from qvl.model.config import ModelConfig
from qvl.model.foreign import Foreign, foreign_of, is_projection, published_foreign
from qvl.model.packed_store import quantise_folder
from qvl.model.packing import Source
from qvl.model.quantization import Quantization, Scheme, chosen_quantization, matrix_shapes, stored_quantization
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_bits
from qvl.model.shapes import parameter_shapes
from qvl.ops import native
from qvl.ops.packing import unpack
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from tests.unit.foreign_support import WIDE, Form, edit_config, read_tensors, write_foreign, write_tensors
from tests.unit.ops.test_linear import each_level
from tests.unit.quantized_support import QUESTION, cosine, difference, engine
from tests.unit.test_quantized_model import BUILT, FLOAT32, ROUNDED

FORMS = {
    "awq": Form("awq"),
    "awq-64": Form("awq", group=64),
    "awq-whole": Form("awq", group=-1),
    "gptq-int4": Form("gptq", symmetric=True),
    "gptq-int4-plain-zeros": Form("gptq", version=2),
    "gptq-int4-asymmetric": Form("gptq", group=32),
    "gptq-int4-whole": Form("gptq", symmetric=True, group=-1, order="absent"),
    "gptq-int4-large-groups": Form("gptq", group=192),
    "gptq-int8": Form("gptq", 8, symmetric=True),
    "gptq-int8-64": Form("gptq", 8, symmetric=True, group=64, version=2, order="absent"),
    "gptq-int8-whole": Form("gptq", 8, symmetric=True, group=-1),
}
Written = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The folder of a form, and that of its numbers in float32. Not to be written to."""
    made: dict[str, tuple[Path, Path]] = {}

    def write(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = write_foreign(tmp_path_factory.mktemp("foreign"), FORMS[name], tokenizer=True)
        return made[name]

    return write


@pytest.fixture
def copy(written: Written, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of a form that may be written to."""

    def make(name: str) -> Path:
        shutil.copytree(written(name)[0], tmp_path / name)
        return tmp_path / name

    return make


def assert_same_numbers(packed: Path, plain: Path) -> None:
    """To the last bit: what the packed matrices stand for is what the folder in float32 has."""
    config, wanted = ModelConfig.from_folder(packed), read_tensors(plain)
    chosen = chosen_quantization("auto", packed, "cpu", "float32")
    assert chosen is not None
    with Source(packed, config) as source:
        names = [name for name in matrix_shapes(config) if is_projection(name)]
        assert len(names) == 7 * config.num_hidden_layers
        for name in names:
            got = unpack(source.matrix(name, chosen.language.packing()))
            np.testing.assert_array_equal(got, wanted[name], err_msg=name)
        for name in wanted.keys() - set(names):
            np.testing.assert_array_equal(source.floats(name), wanted[name], err_msg=name)


@pytest.mark.parametrize("name", FORMS)
def test_every_number_is_that_of_the_format(name: str, written: Written) -> None:
    assert_same_numbers(*written(name))


def test_a_last_group_that_is_not_full_and_inputs_that_need_padding(tmp_path: Path) -> None:
    narrow = replace(WIDE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=200)
    narrow = replace(narrow, vision_config=replace(WIDE.vision_config, hidden_size=64))
    for number, form in enumerate((Form("gptq", group=64), Form("gptq", 8, symmetric=True), Form("gptq", group=-1))):
        assert_same_numbers(*write_foreign(tmp_path / str(number), form, narrow))


@pytest.mark.parametrize("name", ["awq", "gptq-int4", "gptq-int4-asymmetric", "gptq-int8", "gptq-int8-whole"])
@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=BUILT)])
def test_logits_are_those_of_the_dequantised_weights(name: str, mode: str, written: Written) -> None:
    packed, plain = written(name)
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
def test_the_lowest_code_of_int8_is_not_lost_in_any_kernel(level: str, written: Written) -> None:
    """-128, which qvl's own quantising never makes."""
    packed, plain = written("gptq-int8")
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
def test_what_is_not_quantised_stays_float32_unless_asked_for(written: Written) -> None:
    packed, _ = written("awq")
    loaded = engine(packed)
    layers = Scheme("int4", 128, False)
    assert loaded.quantization == Quantization("int4", layers, None, None)
    assert memory.weight_bytes(loaded.config, "float32", (), loaded.quantization) == _held(loaded)
    rest = engine(packed, "int4")
    assert rest.quantization == Quantization("int4", layers, Scheme("int8"), Scheme("int8"))
    assert cosine(rest.next_logits(QUESTION), loaded.next_logits(QUESTION)) > 0.99


@pytest.mark.filterwarnings("ignore:.*slow here")
@pytest.mark.parametrize("name", ["awq", "gptq-int8"])
def test_a_stored_copy_has_the_same_numbers(name: str, written: Written, tmp_path: Path) -> None:
    packed, _ = written(name)
    loaded = engine(packed)
    assert loaded.quantization is not None
    seen: list[tuple[int, int]] = []
    quantise_folder(packed, tmp_path / "out", loaded.quantization, on_progress=lambda *now: seen.append(now))
    assert seen[-1][0] == seen[-1][1]
    stored = engine(tmp_path / "out")
    assert stored_quantization(tmp_path / "out") == stored.quantization == loaded.quantization
    np.testing.assert_array_equal(stored.next_logits(QUESTION), loaded.next_logits(QUESTION))


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_biases_of_nothing_and_a_tied_head_are_left_out(copy: Callable[[str], Path], written: Written) -> None:
    folder = copy("gptq-int4")
    tensors = read_tensors(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for layer in range(WIDE.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.o_proj.bias"] = np.zeros(256, np.float16)
        tensors[f"model.layers.{layer}.mlp.gate_proj.bias"] = np.zeros(384, np.float16)
    write_tensors(folder, tensors)
    same = engine(written("gptq-int4")[0]).next_logits(QUESTION)
    np.testing.assert_array_equal(engine(folder).next_logits(QUESTION), same)
    tensors["model.layers.1.self_attn.o_proj.bias"][7] = 1
    write_tensors(folder, tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj\.bias belongs to no part"):
        engine(folder)


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_newer_names_and_scales_in_bfloat16_are_read(copy: Callable[[str], Path], written: Written) -> None:
    folder = copy("gptq-int4")
    tensors = read_tensors(folder)
    scales = [name for name in tensors if name.endswith(".scales")]
    for name in scales:
        tensors[name] = bfloat16_bits(tensors[name].astype(np.float32))
    short = {name.replace("model.", "model.language_model."): array for name, array in tensors.items()}
    write_tensors(folder, {("model." + n if n.startswith("visual.") else n): a for n, a in short.items()})
    got = engine(folder).next_logits(QUESTION)
    assert difference(got, engine(written("gptq-int4")[1]).next_logits(QUESTION)) < 0.1


@pytest.mark.filterwarnings("ignore:.*slow here")
def test_inputs_in_another_order_are_refused_with_the_reason(tmp_path: Path) -> None:
    packed, _ = write_foreign(tmp_path, Form("gptq", symmetric=True, order="permuted"), tokenizer=True)
    with pytest.raises(CheckpointError, match=r"g_idx: its inputs are grouped in another order \(desc_act\)"):
        engine(packed)


def test_desc_act_without_another_order_is_no_obstacle(copy: Callable[[str], Path], written: Written) -> None:
    folder = copy("gptq-int4")
    edit_config(folder, lambda data: data["quantization_config"].update(desc_act=True))
    assert_same_numbers(folder, written("gptq-int4")[1])


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
    name: str, damage: Callable[[dict[str, Any]], object], words: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
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
    name: str, said: dict[str, Any], words: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
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
    name: str, left_out: list[str], copy: Callable[[str], Path], written: Written
) -> None:
    folder = copy(name)
    wanted = foreign_of(folder)
    edit_config(folder, lambda data: [data["quantization_config"].pop(key) for key in left_out])
    assert foreign_of(folder) == wanted
    edit_config(folder, lambda data: data["quantization_config"].update(modules_to_not_convert=None, dynamic=None))
    assert foreign_of(folder) == wanted
    assert_same_numbers(folder, written(name)[1])


def test_what_does_not_go_together_is_explained(written: Written, tmp_path: Path) -> None:
    packed, _ = written("awq")
    for asked in ("int8", "bf16", "none"):
        with pytest.raises(UsageError, match=rf"quantised to int4 by AWQ; --quant {asked} takes the original"):
            Engine.open(model=packed, quantize=asked, device="cpu")
    with pytest.raises(UsageError, match="quantised to int8 by GPTQ; --quant int4 takes the original"):
        Engine.open(model=written("gptq-int8")[0], quantize="int4", device="cpu")
    with pytest.raises(DeviceError, match=r"what AWQ has quantised runs on CPUs; .*--quant int4"):
        chosen_quantization("auto", packed, "gpu:0", "bfloat16")
    with pytest.raises(QvlError, match="qvl quantize"):
        Engine.open(model=packed, device="cpu").save(tmp_path / "saved")


def test_the_published_ones_are_known_by_name() -> None:
    assert published_foreign("Qwen/Qwen2-VL-2B-Instruct-AWQ") == Foreign("awq", 4, 128, False)
    assert published_foreign("Qwen/Qwen2-VL-7B-Instruct-GPTQ-Int4") == Foreign("gptq", 4, 128, True, True)
    assert published_foreign("Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int8") == Foreign("gptq", 8, 128, True, True)
    assert published_foreign("Qwen/Qwen2-VL-2B-Instruct") is published_foreign("me/Qwen2-VL-2B-AWQ") is None


def test_only_the_layers_of_the_files_are_taken_apart(written: Written) -> None:
    """The support packs as the tools do: an official file has just these tensors of a projection."""
    with SafetensorsFile(written("awq")[0] / "model.safetensors") as file:
        names = {name.rpartition(".")[2] for name in file.tensors if "down_proj" in name}
        assert names == {"qweight", "qzeros", "scales"}
        assert file.tensors["model.layers.0.mlp.down_proj.qweight"].shape == (384, 256 // 8)
    with SafetensorsFile(written("gptq-int4")[0] / "model.safetensors") as file:
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
