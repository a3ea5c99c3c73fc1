"""Random checkpoints: complete, the same everywhere, and in every form that qvl reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qvl.hub import random_checkpoint
from qvl.hub.random_checkpoint import (
    FULL_2B,
    TINY,
    RandomWeights,
    is_linear,
    parameter_shapes,
    tensors_sha256,
    write_checkpoint,
)
from qvl.hub.small_vocabulary import SPECIAL_TOKENS, build_tokenizer, first_special_id, vocabulary, vocabulary_size
from qvl.model.config import ModelConfig
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_bits, bfloat16_to_float32
from tests.conftest import CheckpointOf, Golden
from tests.golden import MEDIA, load_fingerprints, load_lines, load_token_ids
from tests.golden.cases import CASES, NEW_TOKENS, VARIANTS

SIDE_FILES = {
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.json",
}


def read_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of every shard, as stored."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            for name, stored in file.tensors.items():
                rows = [block.copy() for block in file.rows(name, 1000)]
                tensors[name] = np.concatenate(rows).reshape(stored.shape)
    return tensors


def test_a_folder_is_complete(tiny_checkpoint: Path) -> None:
    assert {path.name for path in tiny_checkpoint.iterdir()} == SIDE_FILES | {"model.safetensors"}
    assert {name: t.shape for name, t in read_tensors(tiny_checkpoint).items()} == parameter_shapes(TINY)
    special = json.loads((tiny_checkpoint / "generation_config.json").read_text())
    assert special["eos_token_id"] == [TINY.eos_token_id, TINY.bos_token_id]


@pytest.mark.parametrize("name", VARIANTS)
def test_config_reads_back(name: str, checkpoint_variant: CheckpointOf) -> None:
    variant = VARIANTS[name]
    assert ModelConfig.from_folder(checkpoint_variant(name)) == replace(variant.config, torch_dtype=variant.dtype)


def test_nested_config_has_no_flat_keys(checkpoint_variant: CheckpointOf) -> None:
    data = json.loads((checkpoint_variant("nested") / "config.json").read_text())
    assert "hidden_size" not in data
    assert data["text_config"]["rope_parameters"]["mrope_section"] == list(TINY.mrope_section)


@pytest.mark.parametrize("name", ["tiny", "untied"])
def test_weights_are_those_of_the_golden_files(name: str) -> None:
    variant = VARIANTS[name]
    assert tensors_sha256(variant.config, variant.seed) == load_fingerprints()[name]


def test_a_tensor_depends_on_nothing_but_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    expected = RandomWeights(TINY, 3).tensor(name)
    shallow = RandomWeights(replace(TINY, num_hidden_layers=1), 3)
    monkeypatch.setattr(random_checkpoint, "_BLOCK_NUMBERS", 200)
    np.testing.assert_array_equal(shallow.tensor(name), expected)
    assert not np.array_equal(RandomWeights(TINY, 4).tensor(name), expected)


def test_only_an_untied_model_has_a_head() -> None:
    assert "lm_head.weight" not in parameter_shapes(TINY)
    assert parameter_shapes(replace(TINY, tie_word_embeddings=False))["lm_head.weight"] == (1024, 64)


def test_the_2b_shape_has_the_published_number_of_parameters() -> None:
    assert sum(int(np.prod(shape)) for shape in parameter_shapes(FULL_2B).values()) == 2_208_985_600


@pytest.mark.parametrize("name", ["sharded", "paddle-sharded"])
def test_shards_hold_what_the_index_says(name: str, checkpoint_variant: CheckpointOf, tiny_checkpoint: Path) -> None:
    folder = checkpoint_variant(name)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            found |= dict.fromkeys(file.tensors, path.name)
            sizes = [tensor.nbytes for tensor in file.tensors.values()]
        assert sum(sizes) <= 300_000 or len(sizes) == 1
    assert found == index["weight_map"]
    assert len(set(found.values())) > 3
    whole = read_tensors(tiny_checkpoint)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    if name == "sharded":
        for key, tensor in read_tensors(folder).items():
            np.testing.assert_array_equal(tensor, whole[key])


def test_paddle_layout_turns_linears_and_says_so(checkpoint_variant: CheckpointOf, tiny_checkpoint: Path) -> None:
    ours = read_tensors(tiny_checkpoint)
    turned = read_tensors(checkpoint_variant("paddle"))
    for name, tensor in turned.items():
        np.testing.assert_array_equal(tensor, ours[name].T if is_linear(name) else ours[name])
    linears = [name for name in turned if is_linear(name)]
    assert len(linears) == 3 * 7 + 2 * 4 + 2
    for folder, expected in ((checkpoint_variant("paddle"), "np"), (tiny_checkpoint, "pt")):
        with SafetensorsFile(folder / "model.safetensors") as file:
            assert file.metadata["format"] == expected


def test_bfloat16_weights_are_the_nearest(checkpoint_variant: CheckpointOf, tiny_checkpoint: Path) -> None:
    exact = read_tensors(tiny_checkpoint)
    for name, bits in read_tensors(checkpoint_variant("bfloat16")).items():
        assert bits.dtype == np.uint16
        error = np.abs(bfloat16_to_float32(bits).astype(np.float64) - exact[name])
        for neighbour in (bits + np.uint16(1), bits - np.uint16(1)):
            assert (error <= np.abs(bfloat16_to_float32(neighbour).astype(np.float64) - exact[name])).all()


def test_bfloat16_ties_go_to_even() -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], dtype=np.float32)
    np.testing.assert_array_equal(bfloat16_to_float32(bfloat16_bits(ties)), [1.0, 1 + 2**-6, -1.0])


def test_float16_weights_are_rounded_once(checkpoint_variant: CheckpointOf, tiny_checkpoint: Path) -> None:
    exact = read_tensors(tiny_checkpoint)
    for name, tensor in read_tensors(checkpoint_variant("float16")).items():
        np.testing.assert_array_equal(tensor, exact[name].astype(np.float16))


def test_special_tokens_stand_where_the_config_says() -> None:
    tokenizer = build_tokenizer(first_special_id(TINY))
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(vocabulary_size(), vocabulary_size() + len(SPECIAL_TOKENS)))
    assert tokenizer.token_to_id("<|image_pad|>") == TINY.image_token_id
    assert tokenizer.token_to_id("<|im_end|>") == TINY.eos_token_id


def test_fillers_do_not_change_how_text_is_encoded() -> None:
    small, large = build_tokenizer(vocabulary_size()), build_tokenizer(first_special_id(FULL_2B))
    small.encode_special_tokens = large.encode_special_tokens = True
    assert large.token_to_id("<|image_pad|>") == FULL_2B.image_token_id
    for line, ids in zip(load_lines(), load_token_ids("small"), strict=True):
        assert small.encode(line).ids == large.encode(line).ids == ids
    assert len(vocabulary(5000)) == 5000


def test_misplaced_vision_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vision tokens"):
        write_checkpoint(tmp_path, replace(TINY, video_token_id=5))


def test_golden_files_can_be_relied_on(golden: Golden) -> None:
    answers = {}
    for case in CASES:
        arrays = golden(case.name)
        assert arrays["margin"] > 1e-3, f"{case.name}: two tokens are too close for equal tokens to be a fair demand"
        assert len(set(arrays["tokens"].tolist())) > 5, f"{case.name}: the answer repeats itself"
        assert arrays["tokens"].shape == (NEW_TOKENS,)
        answers[case.name] = arrays["tokens"].tobytes()
    assert len(set(answers.values())) == len(CASES)
    assert MEDIA.is_dir()
