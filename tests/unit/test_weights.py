"""Loading is strict and names what is wrong; saving gives back what was loaded; memory stays at the model's own."""

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

from qvl.errors import CheckpointError
from qvl.hub.random_checkpoint import TINY, RandomWeights, write_checkpoint
from qvl.model.checkpoint_writer import write_weights
from qvl.model.config import ModelConfig
from qvl.model.safetensors_io import SafetensorsFile
from qvl.model.save import save_model
from qvl.model.weights import load_model
from tests.conftest import CheckpointOf

FILE = "model.safetensors"


def load(folder: Path, **options: object) -> object:
    return load_model(folder, ModelConfig.from_folder(folder), **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def rewrite(folder: Path) -> Callable[..., None]:
    """Write the weights again with some left out, added or of another shape."""

    def write(
        drop: tuple[str, ...] = (),
        add: dict[str, tuple[int, ...]] | None = None,
        metadata_format: str = "pt",
        rename: Callable[[str], str] = str,
    ) -> None:
        weights = RandomWeights(TINY, 0)
        shapes = {rename(name): shape for name, shape in weights.shapes.items() if name not in drop} | (add or {})
        original = {rename(name): name for name in weights.shapes}

        def produce(name: str) -> list[np.ndarray]:
            known = original.get(name)
            if known is None or weights.shapes[known] != shapes[name]:
                return [np.zeros(shapes[name], np.float32)]
            return [weights.tensor(known)]

        write_weights(folder, shapes, "float32", produce, metadata_format=metadata_format)

    return write


def test_parameters_are_those_of_the_file(tiny_checkpoint: Path) -> None:
    weights = RandomWeights(TINY, 0)
    model = load(tiny_checkpoint)
    parameters = dict(model.named_parameters())  # type: ignore[attr-defined]
    assert parameters.keys() == weights.shapes.keys()
    gate = weights.tensor("model.layers.1.mlp.gate_proj.weight")
    np.testing.assert_array_equal(parameters["model.layers.1.mlp.gate_proj.weight"].numpy(), gate.T)
    square = weights.tensor("model.layers.2.self_attn.o_proj.weight")
    assert square.shape[0] == square.shape[1], "a square matrix, whose shape does not tell the layout"
    np.testing.assert_array_equal(parameters["model.layers.2.self_attn.o_proj.weight"].numpy(), square.T)


@pytest.mark.parametrize("drop", ["model.norm.weight", "visual.merger.mlp.2.bias"])
def test_a_missing_tensor_is_named(folder: Path, rewrite: Callable[..., None], drop: str) -> None:
    rewrite(drop=(drop,))
    with pytest.raises(CheckpointError, match=f"tensor {drop} is missing"):
        load(folder)


def test_an_extra_tensor_is_named(folder: Path, rewrite: Callable[..., None]) -> None:
    rewrite(add={"model.layers.3.mlp.up_proj.weight": (128, 64)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.up_proj\.weight belongs to no part"):
        load(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path, rewrite: Callable[..., None]) -> None:
    rewrite(add={"model.layers.0.self_attn.k_proj.weight": (64, 64)})
    with pytest.raises(CheckpointError, match=r"k_proj\.weight has shape \[64, 64\], config\.json asks for \[32, 64\]"):
        load(folder)


def test_a_stored_copy_of_the_tied_head_is_no_error(folder: Path, rewrite: Callable[..., None]) -> None:
    rewrite(add={"lm_head.weight": (TINY.vocab_size, TINY.hidden_size)})
    load(folder)


def test_names_of_later_transformers_are_read(folder: Path, rewrite: Callable[..., None]) -> None:
    def rename(name: str) -> str:
        return "model." + (name if name.startswith("visual.") else "language_model." + name.removeprefix("model."))

    rewrite(rename=rename)
    with SafetensorsFile(folder / FILE) as file:
        assert "model.language_model.norm.weight" in file.tensors and "model.visual.merger.ln_q.bias" in file.tensors
    load(folder)


def test_unknown_layout_is_asked_for_and_not_guessed(folder: Path, rewrite: Callable[..., None]) -> None:
    rewrite(metadata_format="mlx")
    with pytest.raises(CheckpointError, match="weight_layout"):
        load(folder)
    load(folder, layout="hf")


@pytest.mark.parametrize("keep", [4, 2000, 200_000])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (truncated|not a safetensors file)"):
        load(folder)


def test_a_damaged_header_is_named(folder: Path) -> None:
    path = folder / FILE
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xfe{{"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="header is damaged"):
        load(folder)


def test_a_missing_shard_is_named(checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_variant("sharded"), tmp_path / "model"))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"shard {shard.name} is missing"):
        load(folder)


def test_an_index_that_lies_is_an_error(checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_variant("sharded"), tmp_path / "model"))
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    name, shard = next(iter(data["weight_map"].items()))
    other = next(s for s in data["weight_map"].values() if s != shard)
    data["weight_map"][name] = other
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=name):
        load(folder)
    data["weight_map"][name] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        load(folder)


@pytest.mark.parametrize("name", ["model_state.pdparams", "pytorch_model.bin"])
def test_pickles_are_refused_unless_asked_for(folder: Path, name: str) -> None:
    (folder / FILE).rename(folder / name)
    with pytest.raises(CheckpointError, match=r"pickled weights.*--allow-pickle"):
        load(folder)


def test_paddle_pickles_are_read_on_request(folder: Path, tiny_checkpoint: Path) -> None:
    import paddle

    model = load(tiny_checkpoint)
    state = {name: value.numpy() for name, value in model.state_dict().items()}  # type: ignore[attr-defined]
    vision = TINY.vision_config
    proj = "visual.patch_embed.proj.weight"
    side = vision.patch_size
    state[proj] = state[proj].T.reshape(vision.embed_dim, vision.in_channels, vision.temporal_patch_size, side, side)
    (folder / FILE).unlink()
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(folder / "model_state.pdparams"))
    again = load(folder, allow_pickle=True)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_float16_overflow_is_noticed_while_loading(folder: Path) -> None:
    weights = RandomWeights(TINY, 0)

    def produce(name: str) -> list[np.ndarray]:
        tensor = weights.tensor(name)
        return [tensor * 1e6 if name == "model.norm.weight" else tensor]

    write_weights(folder, weights.shapes, "float32", produce)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight does not fit in float16"):
        load(folder, dtype="float16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, "model_type is 'qwen2_5_vl'"),
        ({"architectures": ["Qwen2VLModel"]}, "architecture Qwen2VLModel"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section"),
    ],
)
def test_unsupported_configurations_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_folder(folder)


def test_published_config_with_few_vision_keys_is_read() -> None:
    published = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "in_chans": 3, "spatial_patch_size": 14},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    config = ModelConfig.from_dict(published)
    assert config.vision_config.num_heads == 16 and config.vision_config.intermediate_size == 5120
    assert config.vision_config.patch_dim == 1176 and config.head_dim == 128
    resaved = {**published, "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}}
    assert ModelConfig.from_dict(resaved) == config
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("dtype", "shard_bytes"), [("float32", 5 * 10**9), ("float32", 200_000), ("bfloat16", 10**9)])
def test_saving_gives_back_what_was_loaded(
    checkpoint_variant: CheckpointOf, tmp_path: Path, dtype: str, shard_bytes: int
) -> None:
    source = checkpoint_variant("untied" if dtype == "float32" else "bfloat16")
    model = load(source)
    out = tmp_path / "new" / "model"
    save_model(model, out, source=source, dtype=dtype, shard_bytes=shard_bytes)  # type: ignore[arg-type]
    again = load(out)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"} <= names
    assert ("model.safetensors.index.json" in names) == (shard_bytes < 10**6)
    assert sorted(p.name for p in out.parent.iterdir()) == ["model"], "nothing half made is left"
    with pytest.raises(CheckpointError, match="already there"):
        save_model(model, out, source=source)  # type: ignore[arg-type]


MEASURE = """
import sys
from pathlib import Path
from qvl import environment
environment.prepare()
import numpy, paddle, qvl.model.weights
from qvl.model.config import ModelConfig
from qvl.runtime.memory import peak_bytes
folder = Path(sys.argv[1])
config = ModelConfig.from_folder(folder)
paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))
before = peak_bytes()
model = qvl.model.weights.load_model(folder, config)
print(peak_bytes() - before, sum(p.size for p in model.parameters()) * 4, max(p.size for p in model.parameters()) * 4)
"""


@pytest.mark.slow
def test_loading_takes_no_more_than_the_model_and_its_largest_tensor(tmp_path: Path) -> None:
    config = replace(TINY, hidden_size=512, num_attention_heads=32, intermediate_size=8192, vocab_size=40_000)
    config = replace(
        config,
        num_hidden_layers=8,
        image_token_id=39_996,
        video_token_id=39_997,
        vision_start_token_id=39_993,
        vision_end_token_id=39_994,
        vision_config=replace(config.vision_config, hidden_size=512),
    )
    write_checkpoint(tmp_path, config, dtype="bfloat16", tokenizer=False)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    taken, model, largest = map(int, run.stdout.split())
    assert model > 400 * 2**20, "large enough for the figure to mean something"
    assert taken <= model + largest
