"""Adapters made by PEFT run as they do in transformers; those trained here load back; wrong ones say what is wrong."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from qvl.cli import main
from qvl.errors import CheckpointError, MemoryLimitError, QvlError, UsageError
from qvl.model.adapter import Adapter, linear_shapes
from qvl.model.adapter_config import AdapterConfig, AdapterRequest
from qvl.model.config import ModelConfig
from qvl.model.qwen2_vl import ModelInputs
from qvl.model.safetensors_io import SafetensorsFile, SafetensorsWriter
from qvl.model.weights import empty_model, load_model
from qvl.profile import Profile
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from qvl.training.adapters import PARTS, add_lora, load_adapter_into, lora_modules, save_adapter
from qvl.training.batch import collate
from qvl.training.model import TrainingModel
from tests.conftest import CheckpointOf
from tests.golden import GOLDEN, load_case
from tests.golden.cases import CASES
from tests.parity.support import GREEDY, messages_of
from tests.training.support import training_example

ADAPTERS = GOLDEN / "adapter"
CASE = next(case for case in CASES if case.name == "image")
TOLERANCE = 1e-4  # of the range of the logits, float32

Files = dict[str, np.ndarray]


def engine(base: Path, *adapters: str) -> Engine:
    return Engine.load(Profile(model=str(base), device="cpu"), adapters=adapters)


def last_logits(base: Path, *adapters: str) -> np.ndarray:
    return engine(base, *adapters).next_logits(messages_of(CASE))


def assert_close(got: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * float(wanted.max() - wanted.min()))


def read(path: Path) -> Files:
    with SafetensorsFile(path) as file:
        return {name: next(file.rows(name, tensor.shape[0])).copy() for name, tensor in file.tensors.items()}


def write(path: Path, tensors: Files) -> None:
    declared = {name: ("F32", values.shape) for name, values in tensors.items()}
    with SafetensorsWriter(path, declared, {"format": "pt"}) as writer:
        for values in tensors.values():
            writer.write(values)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the language adapter with changed settings and tensors."""

    def make(change: Callable[[Files], None] | None = None, source: str = "language", **settings: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ADAPTERS / source, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        if change:
            tensors = read(folder / "adapter_model.safetensors")
            change(tensors)
            write(folder / "adapter_model.safetensors", tensors)
        return folder

    return make


@pytest.mark.parametrize("name", ["language", "rslora", "visual"])
def test_an_adapter_made_by_peft_answers_as_in_transformers(name: str, tiny_checkpoint: Path) -> None:
    reference = load_case("adapter")
    loaded = engine(tiny_checkpoint, str(ADAPTERS / name))
    prompt = loaded.prompt(messages_of(CASE))
    got = loaded.next_logits(prompt)
    low, high = reference[f"{name}_logits_range"]
    np.testing.assert_allclose(got, reference[f"{name}_last_logits"], rtol=0, atol=TOLERANCE * float(high - low))
    assert list(loaded.generate(prompt, GREEDY).token_ids) == reference[f"{name}_tokens"].tolist()
    assert reference[f"{name}_tokens"].tolist() != load_case("image")["tokens"].tolist()


def test_the_names_of_newer_transformers_mean_the_same(tiny_checkpoint: Path, edited: Callable[..., Path]) -> None:
    def rename(tensors: Files) -> None:
        for name in list(tensors):
            newer = name.replace(".model.model.", ".model.model.language_model.").replace(
                ".model.visual.", ".model.model.visual."
            )
            tensors[newer] = tensors.pop(name)

    for source, settings in (
        ("rslora", {}),
        ("visual", {"target_modules": r"model\.(language_model\.layers\.\d+\.self_attn\.q_proj|visual\.blocks.+)"}),
    ):
        newer = edited(rename, source, **settings)
        assert_close(
            last_logits(tiny_checkpoint, str(newer)), last_logits(tiny_checkpoint, str(ADAPTERS / source)), 1e-7
        )


def test_adapters_sum_and_scale(tiny_checkpoint: Path) -> None:
    language, rslora = str(ADAPTERS / "language"), str(ADAPTERS / "rslora")
    plain = last_logits(tiny_checkpoint)
    assert_close(last_logits(tiny_checkpoint, f"a={language}:0"), plain, 1e-7)
    assert_close(
        last_logits(tiny_checkpoint, f"a={language}", f"b={language}:-1", f"c={rslora}:0.5"),
        last_logits(tiny_checkpoint, f"{rslora}:0.5"),
    )
    both, other = last_logits(tiny_checkpoint, language, rslora), last_logits(tiny_checkpoint, rslora, language)
    assert_close(both, other, 1e-5)
    assert np.abs(both - plain).max() > 0.1


def test_weights_are_still_named_and_valued_as_before(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain, adapted = engine(tiny_checkpoint).model, engine(tiny_checkpoint, str(ADAPTERS / "language"))
    for (name, one), (same, other) in zip(plain.named_parameters(), adapted.model.named_parameters(), strict=True):
        assert name == same and bool((one == other).all())
    with pytest.raises(UsageError, match="merge-lora"):
        adapted.save(tmp_path / "out")


def test_requests() -> None:
    assert AdapterRequest.parse("style=some/dir:0.5") == AdapterRequest("style", Path("some/dir"), 0.5)
    assert AdapterRequest.parse("some/dir") == AdapterRequest("dir", Path("some/dir"), 1.0)
    assert AdapterRequest.parse(f"a={ADAPTERS / 'visual'}").scale == 1.0
    for wrong in ("", "=dir", "a=", "a=dir:nan", "a=dir:much"):
        with pytest.raises(UsageError, match="adapter"):
            AdapterRequest.parse(wrong)
    with pytest.raises(UsageError, match="two adapters are called 'language'"):
        Engine.open("demo", model="qvl/tiny", adapters=[str(ADAPTERS / "language")] * 2)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), f"tensor {A} is missing"),
        (lambda t: t.pop(B), f"tensor {B} is missing"),
        (lambda t: (t.pop(A), t.pop(B)), "lora_A and lora_B of model.layers.0.self_attn.q_proj are missing"),
        (lambda t: t.update({A: t[A][:3]}), "not of rank 4"),
        (lambda t: t.update({A: t[A][:, :32]}), r"q_proj is for a layer of 32 to 64, the model's is 64 to 64"),
        (lambda t: t.update({A.replace("layers.0", "layers.9"): t[A]}), "layers.9.self_attn.q_proj.lora_B.weight is"),
        (
            lambda t: t.update({A.replace("s.0", "s.9"): t[A], B.replace("s.0", "s.9"): t[B]}),
            "the model has no linear layer model.layers.9.self_attn.q_proj",
        ),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[A]}), "lm_head.weight .* is not a factor"),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_wrong_tensors(change: Callable[[Files], None], message: str, edited: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=message):
        Engine.open("demo", model="qvl/tiny", adapters=[str(edited(change))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"from_the_future": 1}, "from_the_future is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"r": None}, "r, lora_alpha or another number"),
        ({"r": 8}, "not of rank 8"),
        ({"rank_pattern": {"k_proj": 2}}, "k_proj.* not of rank 2"),
        ({"target_modules": "("}, "target_modules is not a regular expression"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, edited: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=message):
        Engine.open("demo", model="qvl/tiny", adapters=[str(edited(**settings))])


def test_wrong_folders(tmp_path: Path, edited: Callable[..., Path]) -> None:
    folder = edited()

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Adapter.open(folder)

    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused("truncated")
    weights.rename(folder / "adapter_model.bin")
    refused("a pickle can run any code")
    (folder / "adapter_model.bin").unlink()
    refused("adapter_model.safetensors is missing")
    (folder / "adapter_config.json").write_text("{")
    refused("cannot be read as JSON")
    (folder / "adapter_config.json").unlink()
    refused("no adapter_config.json")
    with pytest.raises(CheckpointError, match="no such adapter folder"):
        Adapter.open(tmp_path / "none")


def test_adapters_count_when_it_is_asked_whether_a_model_fits(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Engine.open("2b", model=tiny_checkpoint, dtype="float32")
    free = memory.weight_bytes(bare.config, "float32")
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    bare.load_weights()
    adapted = Engine.open("2b", model=tiny_checkpoint, dtype="float32", adapters=[str(ADAPTERS / "language")])
    with pytest.raises(MemoryLimitError):
        adapted.load_weights()
    with SafetensorsFile(ADAPTERS / "language" / "adapter_model.safetensors") as file:
        free += sum(4 * math.prod(tensor.shape) for tensor in file.tensors.values())
    adapted.load_weights()


def test_infer_without_model_takes_the_base_of_the_adapter(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["infer", "--adapter", str(ADAPTERS / "language"), "-p", "Hi", "--json", "--quiet"]
    assert main([*arguments, "--max-new-tokens", "2"]) == 0
    assert json.loads(capfd.readouterr().out)["model"] == "qvl/tiny"
    assert main([*arguments, "--adapter", "style=/nowhere:2"]) == 1
    assert "no such adapter folder" in capfd.readouterr().err


def base_model(folder: Path) -> Any:
    return load_model(folder, ModelConfig.from_folder(folder))


def trained(folder: Path, **choices: Any) -> Any:
    """A LoRAModel whose B is no longer zero."""
    lora = add_lora(base_model(folder), **{"rank": 4, "alpha": 8, **choices})
    paddle.seed(1)
    for name, parameter in lora.model.named_parameters():
        if name.endswith("lora_B"):
            parameter.set_value(0.15 * paddle.randn(parameter.shape))
    lora.eval()
    return lora


def logits_of(model: Any, base: Path) -> np.ndarray:
    holder = engine(base)
    holder.lend(model)
    return holder.next_logits(messages_of(CASE))


@pytest.mark.parametrize(
    "choices",
    [{}, {"rslora": True, "dropout": 0.3}, {"parts": PARTS}, {"targets": ["model.layers.1.mlp.up_proj", "q_proj"]}],
)
def test_what_is_trained_here_loads_for_inference_and_for_more_training(
    choices: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lora = trained(tiny_checkpoint, **choices)
    expected = logits_of(lora.model, tiny_checkpoint)
    save_adapter(lora, tmp_path / "adapter", "qvl/tiny")
    assert_close(last_logits(tiny_checkpoint, str(tmp_path / "adapter")), expected, 1e-5)
    assert np.abs(expected - last_logits(tiny_checkpoint)).max() > 0.1

    again = add_lora(base_model(tiny_checkpoint), **{"rank": 4, "alpha": 8, **choices})
    load_adapter_into(again, tmp_path / "adapter")
    again.eval()
    np.testing.assert_array_equal(logits_of(again.model, tiny_checkpoint), expected)
    with pytest.raises(CheckpointError, match="already there"):
        save_adapter(lora, tmp_path / "adapter", "qvl/tiny")


def test_an_adapter_made_by_peft_can_be_trained_on(tiny_checkpoint: Path) -> None:
    lora = add_lora(base_model(tiny_checkpoint), rank=4, alpha=8)
    load_adapter_into(lora, ADAPTERS / "language")
    lora.eval()
    assert_close(logits_of(lora.model, tiny_checkpoint), load_case("adapter")["language_last_logits"])
    with pytest.raises(CheckpointError, match=r"gate_proj is a target of this training, but not in"):
        load_adapter_into(lora, ADAPTERS / "rslora")
    other = add_lora(base_model(tiny_checkpoint), rank=4, alpha=16)
    with pytest.raises(CheckpointError, match="rank 4 and scale 2, this training 4 and 4"):
        load_adapter_into(other, ADAPTERS / "language")


def test_only_the_factors_learn_and_nothing_has_changed_at_the_start(tiny_checkpoint: Path) -> None:
    lora = add_lora(base_model(tiny_checkpoint), rank=4, alpha=8)
    learning = {name for name, parameter in lora.model.named_parameters() if not parameter.stop_gradient}
    modules = [name for name in lora_modules(base_model(tiny_checkpoint)) if name.startswith("model.")]
    assert learning == {f"{name}.lora_{factor}" for name in modules for factor in "AB"} and len(modules) == 3 * 7
    assert np.isfinite(lora.model.model.layers[0].mlp.up_proj.lora_A.numpy()).all()
    assert float(lora.model.model.layers[0].mlp.up_proj.lora_A.abs().max()) > 0
    assert lora.model.config.hidden_size == 64
    assert_close(logits_of(lora.model, tiny_checkpoint), last_logits(tiny_checkpoint), 1e-7)

    paddle.seed(0)
    hidden = lora.model.model(
        paddle.randn([5, 64]), paddle.to_tensor(np.tile(np.arange(5, dtype=np.int64), (3, 1))), [5]
    )
    lora.model.logits(hidden).sum().backward()
    held = {name for name, parameter in lora.model.named_parameters() if parameter.grad is not None}
    assert held == learning


def test_the_vision_tower_is_adapted_only_when_named() -> None:
    model = empty_model(ModelConfig.from_folder(Engine.open("demo", model="qvl/tiny").folder), "float32")
    every = set(linear_shapes(model))
    language = set(lora_modules(model))
    vision, merger = set(lora_modules(model, parts=["vision"])), set(lora_modules(model, parts=["merger"]))
    assert not any(name.startswith("visual") for name in language)
    assert merger == {"visual.merger.mlp.0", "visual.merger.mlp.2"}
    assert len(vision) == 2 * 4 and "visual.patch_embed.proj" not in vision
    assert set(lora_modules(model, parts=PARTS)) == language | vision | merger == every


@pytest.mark.slow
def test_paddlenlp_says_nothing(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qvl import environment; environment.prepare()\n"
        "from qvl.model.config import ModelConfig; from qvl.model.weights import load_model\n"
        "from qvl.training.adapters import add_lora\n"
        "folder = Path(sys.argv[1])\n"
        "add_lora(load_model(folder, ModelConfig.from_folder(folder)), rank=4, alpha=8)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_checkpoint)], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"targets": ["qkv"]}, "'qkv' is no layer of the language model; it has down_proj, gate_proj"),
        ({"targets": ["q_proj", "lm_head"]}, "'lm_head' is no layer"),
        ({"targets": []}, "needs targets"),
        ({"parts": ["visual"]}, "LoRA part 'visual'"),
        ({"parts": []}, "no part"),
        ({"rank": 0}, "LoRA rank 0"),
    ],
)
def test_wrong_targets(choices: dict[str, Any], message: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(QvlError, match=message):
        add_lora(base_model(tiny_checkpoint), **{"rank": 4, "alpha": 8, **choices})


def test_an_adapted_head_learns(checkpoint_variant: CheckpointOf) -> None:
    """The loss works the head out in chunks, without calling its layer."""
    folder = checkpoint_variant("untied")
    model = trained(folder, targets=["q_proj", "lm_head"]).model
    learning = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    batch = collate([training_example("text", folder)], model.config, 1.0)
    inputs = ModelInputs(
        input_ids=paddle.to_tensor(batch.input_ids),
        position_ids=paddle.to_tensor(batch.position_ids),
        lengths=batch.lengths,
        features=None,
        merge_index=None,
        logits_index=paddle.to_tensor(batch.target_index),
    )

    def gradients(loss: paddle.Tensor) -> dict[str, np.ndarray]:
        loss.backward()
        found = {name: parameter.grad.numpy() for name, parameter in learning.items()}
        for parameter in learning.values():
            parameter.clear_gradient()
        return found

    targets = paddle.to_tensor(batch.targets)
    plain = gradients(paddle.nn.functional.cross_entropy(model(inputs), targets, reduction="sum"))
    chunked = gradients(TrainingModel(model, loss_chunk=3, recompute=False)(batch))
    assert {"lm_head.lora_A", "lm_head.lora_B"} < plain.keys() == chunked.keys()
    for name, expected in plain.items():
        assert np.abs(expected).max() > 0, name
        assert_close(chunked[name], expected, 1e-5)


def test_the_head_can_be_adapted_where_there_is_one(checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    untied = checkpoint_variant("untied")
    lora = trained(untied, targets=["q_proj", "lm_head"])
    save_adapter(lora, tmp_path / "head", None)
    assert AdapterConfig.from_folder(tmp_path / "head").target_modules == ("q_proj", "lm_head")
    assert_close(last_logits(untied, str(tmp_path / "head")), logits_of(lora.model, untied), 1e-5)
    with pytest.raises(CheckpointError, match=r"no linear layer lm_head \(its head is the embedding\)"):
        Engine.open("demo", model="qvl/tiny", adapters=[str(tmp_path / "head")])
