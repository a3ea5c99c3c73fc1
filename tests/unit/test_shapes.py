"""The shapes of the published models, against the sizes of their files."""

from __future__ import annotations

import math

import pytest

from qvl.hub.random_checkpoint import parameter_shapes
from qvl.model.config import ModelConfig
from qvl.model.shapes import published_config
from qvl.profile import list_profiles, load_profile
from qvl.runtime.memory import weight_bytes


@pytest.mark.parametrize(
    ("model", "published"),
    [
        # total_size of model.safetensors.index.json, in bfloat16; of the 72B, its 73.41 billion numbers at two bytes.
        ("Qwen/Qwen2-VL-2B-Instruct", 4_417_971_200),
        ("Qwen/Qwen2-VL-2B", 4_417_971_200),
        ("Qwen/Qwen2-VL-7B-Instruct", 16_582_751_232),
        ("Qwen/Qwen2-VL-72B-Instruct", 146_811_120_640),
        ("Qwen/Qwen2-VL-2B-Instruct-AWQ", 4_417_971_200),
        ("Qwen/Qwen2-VL-7B-Instruct-GPTQ-Int8", 16_582_751_232),
        # Padded to 29696 inner numbers in each of 80 layers.
        ("Qwen/Qwen2-VL-72B-Instruct-GPTQ-Int4", 146_811_120_640 + 2 * 80 * 3 * 128 * 8192),
    ],
)
def test_a_shape_has_as_many_numbers_as_the_published_files(model: str, published: int) -> None:
    config = published_config(model)
    assert config is not None
    assert 2 * sum(math.prod(shape) for shape in parameter_shapes(config).values()) == published
    assert weight_bytes(config, "bfloat16") == published
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "model",
    ["Qwen/Qwen2-VL-3B", "Qwen/Qwen2.5-VL-7B-Instruct", "2B", "Other/Qwen2-VL-2B", "", "Qwen/Qwen2-VL-2B-AWQ-2"],
)
def test_other_names_have_no_shape(model: str) -> None:
    assert published_config(model) is None


def test_every_shipped_profile_has_a_shape() -> None:
    models = {load_profile(info.name).model for info in list_profiles() if info.source == "shipped"}
    assert len(models) == 7
    assert all(model == "demo" or published_config(model) is not None for model in models)
