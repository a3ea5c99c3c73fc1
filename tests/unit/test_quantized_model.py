"""Quantised models: what they compute, how they are made, stored and mapped, and what they take."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import CheckpointError, DeviceError, UsageError
from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.model.config import ModelConfig
from qvl.model.packed import PackedProjection, projections
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import WIDTHS, Quantization, Width, chosen_quantization, stored_quantization, tensor_names
from qvl.model.safetensors_io import SafetensorsFile
from qvl.ops import native
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from qvl.runtime.session import Session
from tests.conftest import CheckpointOf
from tests.golden import GOLDEN
from tests.unit.quantized_support import (
    GREEDY,
    QUESTION,
    WORDS,
    Logits,
    cosine,
    dequantised,
    difference,
    engine,
)

each_width = pytest.mark.parametrize("width", WIDTHS)

# How far logits may be from those of the dequantised weights in float32, in terms of their range. The composed body
# computes in float32; the native one rounds activations, to bfloat16 for bf16 and, in groups of a row, to int8 else.
FLOAT32 = 2e-5
ROUNDED: dict[Width, float] = {"bf16": 0.02, "int8": 0.06, "int4": 0.06}

BUILT = pytest.mark.skipif(bool(native.why_not()), reason="the native ops are not built")
native_too = pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=BUILT)])


# Where activations keep float32, so that the same token follows.
EXACT = [
    *((width, "composed", None) for width in WIDTHS),
    pytest.param("bf16", "native", "portable", marks=BUILT),
]


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Width], Path]:
    folder = tmp_path_factory.mktemp("stored")

    def make(width: Width) -> Path:
        if not (folder / width).exists():
            quantise_folder(tiny_checkpoint, folder / width, Quantization.of(width))
        return folder / width

    return make


@each_width
@native_too
def test_logits_are_those_of_the_dequantised_weights(width: Width, mode: str, tiny_checkpoint: Path) -> None:
    with native.using(mode):  # type: ignore[arg-type]
        if mode == "composed":
            with pytest.warns(UserWarning, match=f"{width} weights are slow here"):
                quantised = engine(tiny_checkpoint, width)
        else:
            quantised = engine(tiny_checkpoint, width)
        got = quantised.next_logits(QUESTION)
        wanted = dequantised(tiny_checkpoint, width).next_logits(QUESTION)
    assert difference(got, wanted) < (FLOAT32 if mode == "composed" else ROUNDED[width])
    assert cosine(got, wanted) > 0.999
    plain = engine(tiny_checkpoint).next_logits(QUESTION)
    assert difference(wanted, plain) > 1e-4, "the weights were rounded at all"


@pytest.mark.parametrize(("width", "mode", "level"), EXACT)
def test_an_answer_token_by_token_is_that_of_the_dequantised_weights(
    width: Width, mode: native.Mode, level: str | None, tiny_checkpoint: Path
) -> None:
    """Through the cache, where attention takes the three projections as one."""
    with native.using(mode, level=level), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = engine(tiny_checkpoint, width).generate(QUESTION, GREEDY)
        wanted = dequantised(tiny_checkpoint, width).generate(QUESTION, GREEDY)
    assert answer.token_ids == wanted.token_ids


def test_bfloat16_weights_of_a_bfloat16_checkpoint_are_exact(checkpoint_variant: CheckpointOf) -> None:
    folder = checkpoint_variant("bfloat16")
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        got = engine(folder, "bf16").next_logits(QUESTION)
    assert difference(got, engine(folder).next_logits(QUESTION)) < FLOAT32


@each_width
def test_a_stored_model_is_the_one_made_on_load(
    width: Width, tiny_checkpoint: Path, stored: Callable[..., Path]
) -> None:
    made, mapped = engine(tiny_checkpoint, width), engine(stored(width))
    assert mapped.quantization == made.quantization == Quantization.of(width)
    np.testing.assert_array_equal(mapped.next_logits(QUESTION), made.next_logits(QUESTION))
    for ours, theirs in zip(projections(made.model), projections(mapped.model), strict=True):
        assert ours.names == theirs.names
        for one, other in zip(_weights(ours), _weights(theirs), strict=True):
            np.testing.assert_array_equal(one.matrix.data, other.matrix.data)
            if one.matrix.scales is not None:
                np.testing.assert_array_equal(one.matrix.scales, other.matrix.scales)


def _weights(layer: object) -> list:  # type: ignore[type-arg]
    assert isinstance(layer, PackedProjection)
    return layer.weights if isinstance(layer.weights, list) else [layer.weights]


@pytest.mark.parametrize("variant", ["untied", "paddle", "bfloat16"])
def test_any_form_of_checkpoint_is_quantised(variant: str, checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_variant(variant)
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        wanted = dequantised(source, "int8").next_logits(QUESTION)
        quantise_folder(source, tmp_path / "out", Quantization.of("int8"))
        got = engine(tmp_path / "out").next_logits(QUESTION)
    assert difference(got, wanted) < FLOAT32


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stored_weights_are_mapped_and_begin_at_cache_lines(stored: Callable[..., Path]) -> None:
    folder = stored("int4")
    model = engine(folder).model
    file = str(folder / "model.safetensors")
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    limits = [tuple(int(end, 16) for end in span.split("-")) for span in spans]
    matrices = [weight.matrix for layer in projections(model) for weight in _weights(layer)]
    matrices.append(model.model.embed_tokens.weight.matrix)
    for matrix in matrices:
        arrays = [array for array in (matrix.data, matrix.scales, matrix.zeros) if array is not None]
        for array in arrays:
            address = array.ctypes.data
            assert any(low <= address and address + array.nbytes <= high for low, high in limits)
            assert not array.flags.writeable and array.flags.aligned
        assert matrix.data.ctypes.data % 64 == 0


def test_the_names_in_the_file_are_those_of_the_documentation(stored: Callable[..., Path]) -> None:
    with SafetensorsFile(stored("int4") / "model.safetensors") as file:
        tensors = file.tensors
    config = ModelConfig.from_folder(stored("int4"))
    assert set(tensors) == set(tensor_names(config, Quantization.of("int4")))
    query = "model.layers.0.self_attn.q_proj"
    assert tensors[f"{query}.weight.data"].dtype == tensors[f"{query}.weight.zeros"].dtype == "U8"
    assert (tensors[f"{query}.weight.scales"].dtype, tensors[f"{query}.bias"].dtype) == ("F16", "F32")
    assert tensors["model.embed_tokens.weight.data"].dtype == "I8"
    said = json.loads((stored("int4") / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "qvl" and said["language"] == {"kind": "int4", "group": 64, "symmetric": False}
    files = {path.name for path in stored("int4").iterdir()}
    assert {"tokenizer.json", "preprocessor_config.json", "generation_config.json"} <= files


@each_width
@pytest.mark.parametrize("variant", ["tiny", "untied"])
def test_the_count_of_bytes_is_that_of_the_model(width: Width, variant: str, checkpoint_variant: CheckpointOf) -> None:
    loaded = engine(checkpoint_variant(variant), width)
    held = sum(4 * parameter.size for parameter in loaded.model.parameters())
    weights = [weight for layer in projections(loaded.model) for weight in _weights(layer)]
    weights.append(loaded.model.model.embed_tokens.weight)
    for weight in weights:
        held += weight.matrix.nbytes + (0 if weight.bias is None else weight.bias.nbytes)
    assert memory.weight_bytes(loaded.config, "float32", (), loaded.quantization) == held


@each_width
@pytest.mark.parametrize("name", ["language", "visual"])
def test_an_adapter_is_added_to_quantised_weights(width: Width, name: str, tiny_checkpoint: Path) -> None:
    adapter = str(GOLDEN / "adapter" / name)
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        adapted, bare = engine(tiny_checkpoint, width, adapter), engine(tiny_checkpoint, width)
        got, without = adapted.next_logits(QUESTION), bare.next_logits(QUESTION)
        wanted = dequantised(tiny_checkpoint, width, adapter).next_logits(QUESTION)
    assert difference(got, wanted) < FLOAT32
    assert difference(got, without) > 0.01


@each_width
@BUILT
def test_batches_drafts_and_sessions_answer_as_a_single_run(width: Width, tiny_checkpoint: Path) -> None:
    """With a level whose arithmetic does not depend on how many rows there are; bfloat16 and tile units are others."""
    off = replace(GREEDY, speculate="off")
    with native.using("native", level="portable"):
        loaded = engine(tiny_checkpoint, width)
        alone = [loaded.generate(talk, off).token_ids for talk in (QUESTION, WORDS)]
        together = loaded.generate_batch([QUESTION, WORDS, QUESTION], off)
        assert [answer.token_ids for answer in together] == [*alone, alone[0]]
        drafted = loaded.generate(QUESTION, replace(GREEDY, speculate="on"))
        assert drafted.token_ids == alone[0]
        session = Session(loaded)
        for talk, expected in ((QUESTION, alone[0]), (QUESTION, alone[0]), (WORDS, alone[1])):
            assert sum((chunk.token_ids for chunk in session.stream(talk, off)), ()) == expected


def test_what_does_not_go_together_is_explained(
    tiny_checkpoint: Path, stored: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stored("int4")
    with pytest.raises(UsageError, match=r"quantised to int4; --quant int8 takes the original"):
        engine(folder, "int8")
    with pytest.raises(UsageError, match=r"--quant none takes the original"):
        engine(folder, "none")
    assert engine(folder, "int4").quantization == Quantization.of("int4")
    with pytest.raises(CheckpointError, match="quantised to int4; quantising takes the original"):
        quantise_folder(folder, tmp_path / "again", Quantization.of("int8"))
    with pytest.raises(DeviceError, match="laid out for CPUs"):
        chosen_quantization("auto", folder, "gpu:0", "bfloat16")
    with pytest.raises(DeviceError, match="--dtype bfloat16 or float16"):
        chosen_quantization("int8", tiny_checkpoint, "gpu:0", "float32")
    with pytest.raises(DeviceError, match="does not go with float16"):
        chosen_quantization("bf16", tiny_checkpoint, "gpu:0", "float16")
    assert chosen_quantization("bf16", tiny_checkpoint, "gpu:0", "bfloat16") is None
    with pytest.raises(UsageError, match="qvl quantize"):
        engine(folder).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def _edited(folder: Path, to: Path, change: Callable[[dict], None]) -> Path:  # type: ignore[type-arg]
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    change(config)
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_damaged_folder_is_named_with_what_is_wrong(stored: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored("int4")
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate((cut / "model.safetensors").stat().st_size - 100)
    with pytest.raises(CheckpointError, match="truncated"):
        engine(cut)
    newer = _edited(folder, tmp_path / "newer", lambda c: c["quantization_config"].update(version=2))
    with pytest.raises(CheckpointError, match=r"version 2, this qvl reads 1; quantise the original again"):
        engine(newer)
    wider = _edited(folder, tmp_path / "wider", lambda c: c["quantization_config"]["language"].update(symmetric=True))
    with pytest.raises(CheckpointError, match=r"zeros belongs to no part of this model"):
        engine(wider)
    odd = _edited(folder, tmp_path / "odd", lambda c: c["quantization_config"].pop("vision"))
    with pytest.raises(CheckpointError, match="quantization_config is damaged"):
        engine(odd)
    deeper = _edited(folder, tmp_path / "deeper", lambda c: c.update(num_hidden_layers=4))
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\..* is missing"):
        engine(deeper)
    other = _edited(folder, tmp_path / "other", lambda c: c["quantization_config"].update(quant_method="awq"))
    with pytest.raises(CheckpointError, match=r"quantised checkpoints \(awq\)"):
        engine(other)


def test_a_source_that_is_incomplete_or_pickled_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    deeper = _edited(tiny_checkpoint, tmp_path / "deeper", lambda c: c.update(num_hidden_layers=4))
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.input_layernorm\.weight is missing"):
        quantise_folder(deeper, tmp_path / "out", Quantization.of("int8"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(tiny_checkpoint / "config.json", pickled)
    (pickled / "model_state.pdparams").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled weights cannot be quantised"):
        quantise_folder(pickled, tmp_path / "out", Quantization.of("int8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "pickled"], "nothing half made is left"


def test_only_an_earlier_result_is_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantise_folder(tiny_checkpoint, out, Quantization.of("int8"))
    with pytest.raises(CheckpointError, match="already there"):
        quantise_folder(tiny_checkpoint, out, Quantization.of("int4"))
    quantise_folder(tiny_checkpoint, out, Quantization.of("int4"), force=True)
    assert stored_quantization(out) == Quantization.of("int4")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="no folder that qvl quantize wrote"):
        quantise_folder(tiny_checkpoint, mine, Quantization.of("int4"), force=True)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_a_result_of_several_files_is_one_model(
    tiny_checkpoint: Path, stored: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl.model.packed_store.DEFAULT_SHARD_BYTES", 100_000)
    quantise_folder(tiny_checkpoint, tmp_path / "out", Quantization.of("int4"))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    whole = engine(stored("int4")).next_logits(WORDS)
    np.testing.assert_array_equal(engine(tmp_path / "out").next_logits(WORDS), whole)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.02), ("int8", 0.03)])
@native_too
def test_a_shorter_cache_takes_what_was_said_and_changes_little(
    dtype: str, bound: float, mode: str, tiny_checkpoint: Path
) -> None:
    with native.using(mode):  # type: ignore[arg-type]
        plain, short = engine(tiny_checkpoint), engine(tiny_checkpoint, cache_dtype=dtype)
        full, got = _last(plain), _last(short)
    assert 0 < difference(got, full) < bound
    cache = short.cache(100)
    tensors = [*cache._keys, *cache._values, *cache._key_scales, *cache._value_scales]
    from qvl.runtime.cache import cache_bytes

    assert str(cache._keys[0].dtype) == f"paddle.{dtype}"
    assert sum(int(t.size) * int(t.element_size()) for t in tensors) == cache_bytes(short.config, 100, dtype)
    prompt = short.prompt(QUESTION)
    said = memory.need(short.config, prompt, 100, "float32", 0, memory.Held(dtype))
    assert said.cache == cache_bytes(short.config, len(prompt) + 100, dtype)


def _last(loaded: Engine) -> Logits:
    """Logits of a token behind a prompt in a cache."""
    from qvl.runtime.decode import Feed, advance

    answering = loaded.begin(loaded.prompt(QUESTION), GREEDY)
    with loaded.computing():
        return advance(loaded.model, [Feed(answering.cache, [7], answering.prompt.next_position)])[0][0]


MEASURE = """
import sys
from pathlib import Path
from qvl import environment
environment.prepare()
import numpy, paddle
from qvl.model.config import ModelConfig
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import Quantization
from qvl.runtime.memory import peak_bytes, weight_bytes
folder, chosen = Path(sys.argv[1]), Quantization.of(sys.argv[2])
config = ModelConfig.from_folder(folder)
paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))
before = peak_bytes()
model = load_quantised(folder, config, chosen)
print(peak_bytes() - before, weight_bytes(config, "float32", (), chosen), 2 * config.vocab_size * config.hidden_size)
"""


def _wide(folder: Path) -> None:
    """A checkpoint of 270 MB in bfloat16."""
    config = replace(TINY, hidden_size=512, num_attention_heads=32, intermediate_size=8192, vocab_size=60_000)
    ids = {"image_token_id": 59_996, "video_token_id": 59_997}
    ids |= {"vision_start_token_id": 59_993, "vision_end_token_id": 59_994}
    config = replace(config, num_hidden_layers=8, **ids, vision_config=replace(config.vision_config, hidden_size=512))
    write_checkpoint(folder, config, dtype="bfloat16", tokenizer=False)


def _figures(script: str, *arguments: str) -> list[int]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return list(map(int, run.stdout.split()))


@pytest.mark.slow
@pytest.mark.parametrize("width", ["int8", "int4"])
def test_making_it_takes_no_more_than_the_result_and_one_tensor(width: Width, tmp_path: Path) -> None:
    _wide(tmp_path)
    taken, result, largest = _figures(MEASURE, str(tmp_path), width)
    source = (tmp_path / "model.safetensors").stat().st_size
    assert result > 80 * 2**20 and source > 1.9 * result, "large enough for the figure to mean something"
    assert taken <= result + largest < source


MAPPED = """
import re, sys
from pathlib import Path
from qvl import environment
environment.prepare()
import paddle
from qvl.model.config import ModelConfig
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import stored_quantization
folder = Path(sys.argv[1])
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))
before = own()
model = load_quantised(folder, ModelConfig.from_folder(folder), stored_quantization(folder))
print(own() - before, (folder / "model.safetensors").stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stored_model_takes_no_memory_of_its_own_for_its_weights(tmp_path: Path) -> None:
    _wide(tmp_path / "source")
    quantise_folder(tmp_path / "source", tmp_path / "out", Quantization.of("int8"))
    own, stored = _figures(MAPPED, str(tmp_path / "out"))
    assert stored > 100 * 2**20
    assert own < stored / 10
