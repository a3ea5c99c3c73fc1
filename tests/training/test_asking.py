"""A base model that is taught conversations is asked as it was taught, and its answers end where a turn does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qvl.cli.infer import chosen_profile, open_engine
from qvl.cli.options import MediaOptions, ModelOptions
from qvl.errors import CheckpointError
from qvl.hub.adapters import template_of
from qvl.model.adapter_config import CONFIG_FILE
from qvl.model.asking import FILE, end_answers_at, record_template
from qvl.model.merge import merge_adapter
from qvl.model.weights import load_model
from qvl.profile import Profile
from qvl.runtime.generation import GenerationConfig
from qvl.training.weights import choose_weights
from tests.training.test_adapters import ADAPTERS
from tests.training.test_runs import laid_out


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A model whose answers end with its text alone, as those of the published base models."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    turn, text = settings["eos_token_id"]
    path.write_text(json.dumps({**settings, "eos_token_id": text}))
    assert GenerationConfig.from_folder(folder, turn).eos_token_ids == {text}
    return folder


@pytest.fixture
def ends(tiny_checkpoint: Path) -> frozenset[int]:
    return GenerationConfig.from_folder(tiny_checkpoint, None).eos_token_ids


@pytest.mark.parametrize("template", ["chat", "none"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_trained_says_how_it_is_asked(
    data: Path, base: Path, ends: frozenset[int], tmp_path: Path, method: str, template: str
) -> None:
    run = laid_out(data / "data.json", base, tmp_path / "out", template=template, training={"method": method})
    weights = choose_weights(run, load_model(base, run.config))
    folder = tmp_path / weights.name
    weights.save(folder)
    if method == "lora":
        assert template_of(f"mine={folder}:0.5") == template
        merge_adapter(base, folder, tmp_path / "merged")
        folder = tmp_path / "merged"
    found = GenerationConfig.from_folder(folder, None).eos_token_ids
    assert found == ends if template == "chat" else found < ends


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of a published base model."""
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTERS / "language", folder)
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, "base_model_name_or_path": "Qwen/Qwen2-VL-2B"}))
    return folder


def test_an_adapter_is_asked_with_the_template_it_was_trained_with(adapter: Path) -> None:
    def template(**options: Any) -> tuple[str, str]:
        profile, _ = chosen_profile(ModelOptions(adapter=[str(adapter)], **options), MediaOptions())
        return profile.name, profile.template

    assert template() == ("2b-base", "none")  # PEFT's own say nothing of it
    record_template(adapter, "chat", 7)
    assert template() == template(model="2b-base") == ("2b-base", "chat")
    assert template(settings=["template=none"]) == ("2b-base", "none")
    assert template(profile="2b-base") == ("2b-base", "none")
    record_template(adapter, "none", 7)
    assert template(model="2b") == ("2b", "none")


def test_an_adapter_whose_template_cannot_be_read_is_refused(adapter: Path) -> None:
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"template": "x", "turn_end": 7}', "chat or none"),
    ):
        (adapter / FILE).write_text(text)
        with pytest.raises(CheckpointError, match=words):
            template_of(str(adapter))


def test_answers_of_an_adapter_over_a_base_model_end_with_the_turn(base: Path, ends: frozenset[int]) -> None:
    options = ModelOptions(adapter=[str(ADAPTERS / "language")])
    for template, expected in (("chat", True), ("none", False)):
        engine = open_engine(Profile(model=str(base), device="cpu", template=template), options)  # type: ignore[arg-type]
        assert (engine.generation.eos_token_ids == ends) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"eos_token_id": 7, "top_k": 1}', [5, 7]),
        ('{"eos_token_id": [7, 5]}', [7, 5]),
        ('{"top_k": 1}', [5, 6, 8]),
        (None, [5, 6, 8]),
    ],
)
def test_where_answers_end_is_added_to_what_a_model_says(tmp_path: Path, text: str | None, expected: list[int]) -> None:
    path = tmp_path / "generation_config.json"
    if text is not None:
        path.write_text(text)
    end_answers_at(tmp_path, 5, (6, 8))
    found = json.loads(path.read_text())
    assert found["eos_token_id"] == expected
    assert found.get("top_k") == (1 if text and "top_k" in text else None)
