"""Quantised models: how they are made and stored, that they are mapped, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import CheckpointError, DeviceError, UsageError
from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.model.config import ModelConfig
from qvl.model.packed import projections
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import WIDTHS, Quantization, Width, chosen_quantization, stored_quantization, tensor_names
from qvl.model.safetensors_io import SafetensorsFile
from tests.unit.quantized_support import (
    QUESTION,
    WORDS,
    engine,
    packed_weights,
)

each_width = pytest.mark.parametrize("width", WIDTHS)


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Width], Path]:
    folder = tmp_path_factory.mktemp("stored")

    def make(width: Width) -> Path:
        if not (folder / width).exists():
            quantise_folder(tiny_checkpoint, folder / width, Quantization.of(width))
        return folder / width

    return make


@each_width
def test_a_stored_model_is_the_one_made_on_load(
    width: Width, tiny_checkpoint: Path, stored: Callable[..., Path]
) -> None:
    made, mapped = engine(tiny_checkpoint, width), engine(stored(width))
    assert mapped.quantization == made.quantization == Quantization.of(width)
    np.testing.assert_array_equal(mapped.next_logits(QUESTION), made.next_logits(QUESTION))
    for ours, theirs in zip(projections(made.model), projections(mapped.model), strict=True):
        assert ours.names == theirs.names
        for one, other in zip(packed_weights(ours), packed_weights(theirs), strict=True):
            np.testing.assert_array_equal(one.matrix.data, other.matrix.data)
            if one.matrix.scales is not None:
                np.testing.assert_array_equal(one.matrix.scales, other.matrix.scales)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stored_weights_are_mapped_and_begin_at_cache_lines(stored: Callable[..., Path]) -> None:
    folder = stored("int4")
    model = engine(folder).model
    file = str(folder / "model.safetensors")
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    limits = [tuple(int(end, 16) for end in span.split("-")) for span in spans]
    matrices = [weight.matrix for layer in projections(model) for weight in packed_weights(layer)]
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
    other = _edited(folder, tmp_path / "other", lambda c: c["quantization_config"].update(quant_method="hqq"))
    with pytest.raises(CheckpointError, match=r"quantised checkpoints \(hqq\)"):
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
