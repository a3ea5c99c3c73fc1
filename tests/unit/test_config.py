"""config.json in the forms transformers has written it, and the models that would load but answer wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qvl.errors import CheckpointError
from qvl.hub.random_checkpoint import TINY
from qvl.model.config import ModelConfig
from qvl.runtime.generation import GenerationConfig

FLAT = TINY.to_dict()
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
TEXT = {name: value for name, value in FLAT.items() if name not in (*IDS, "architectures", "vision_config")}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**FLAT, **changes})


def as_4_53(tied: bool) -> dict[str, Any]:
    """Flat keys as in the published file, and the same inside `text_config`, which alone has the tie flag."""
    flat = {name: value for name, value in FLAT.items() if name != "tie_word_embeddings"}
    text = {**TEXT, "model_type": "qwen2_vl_text", "tie_word_embeddings": tied, "image_token_id": None}
    text["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": list(TINY.mrope_section)}
    return {**flat, "text_config": text}


def as_5() -> dict[str, Any]:
    """No flat keys; the rotary settings in one object; ids and the tie flag at the top."""
    text = {name: TEXT[name] for name in TEXT if name not in ("rope_theta", "rope_scaling", "tie_word_embeddings")}
    text["rope_parameters"] = {
        "rope_type": "default",
        "type": "mrope",
        "rope_theta": TINY.rope_theta,
        "mrope_section": list(TINY.mrope_section),
    }
    top = ("architectures", "model_type", "tie_word_embeddings", "vision_config", *IDS)
    return {**{name: FLAT[name] for name in top}, "text_config": text}


@pytest.mark.parametrize("data", [FLAT, as_4_53(True), as_5()], ids=["flat", "4.53", "5"])
def test_every_form_reads_as_the_same_model(data: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(data))) == TINY


def test_an_untied_head_is_seen_in_every_form() -> None:
    assert not read(tie_word_embeddings=False).tie_word_embeddings
    assert not ModelConfig.from_dict(as_4_53(False)).tie_word_embeddings
    assert ModelConfig.from_dict({**as_4_53(True), "tie_word_embeddings": None}).tie_word_embeddings
    assert not ModelConfig.from_dict({**as_5(), "tie_word_embeddings": False}).tie_word_embeddings


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "linear", "longrope"])
def test_a_stretched_context_is_refused_by_name(key: str, kind: str) -> None:
    rope = {key: kind, "factor": 4.0, "mrope_section": list(TINY.mrope_section)}
    with pytest.raises(CheckpointError, match=f"rope_scaling asks for {key} '{kind}'"):
        read(rope_scaling=rope)
    nested = as_5()
    nested["text_config"]["rope_parameters"] |= {key: kind}
    with pytest.raises(CheckpointError, match=f"'{kind}'"):
        ModelConfig.from_dict(nested)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes"])
def test_a_quantised_checkpoint_is_refused_by_name(method: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"quantised checkpoints \({method}\) are not supported; take the original"
    ):
        read(quantization_config={"quant_method": method, "bits": 4})


@pytest.mark.parametrize("name", ["text_config", "vision_config", "rope_parameters", "quantization_config"])
def test_a_null_section_is_no_section(name: str) -> None:
    assert read(**{name: None}).hidden_size == TINY.hidden_size


@pytest.mark.parametrize("name", ["text_config", "vision_config", "rope_scaling"])
def test_a_section_that_is_no_object_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        read(**{name: [1]})


def test_several_ids_may_end_an_answer(tmp_path: Path) -> None:
    config = read(eos_token_id=[1000, 998])
    assert config.eos_token_id == (1000, 998)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert GenerationConfig.from_folder(tmp_path, config.eos_token_id).eos_token_ids == {1000, 998}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert GenerationConfig.from_folder(tmp_path, config.eos_token_id).eos_token_ids == {1000, 998}


def test_a_whole_mlp_ratio_is_written_without_a_point() -> None:
    written = [
        read(vision_config={**FLAT["vision_config"], "mlp_ratio": ratio}).to_dict()["vision_config"]["mlp_ratio"]
        for ratio in (4, 4.0, 3.5)
    ]
    assert json.dumps(written) == "[4, 4, 3.5]"


def test_a_missing_epsilon_is_the_references() -> None:
    data = {name: value for name, value in FLAT.items() if name != "rms_norm_eps"}
    assert ModelConfig.from_dict(data).rms_norm_eps == 1e-5
    assert read().rms_norm_eps == 1e-6
