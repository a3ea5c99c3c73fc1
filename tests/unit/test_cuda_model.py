"""Whole tiny models by the ops of a GPU, emulated, beside the composed ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from qvl.errors import DeviceError
from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.model.packed import PackedEmbedding, projections
from qvl.model.packed_store import quantise_folder
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import Quantization, chosen_quantization, stored_quantization
from qvl.ops import cuda_linear, native
from qvl.ops.cuda_body import Body
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling
from tests.unit.foreign_support import Written
from tests.unit.quantized_support import QUESTION, dequantised, difference, packed_weights

GREEDY = Sampling(max_new_tokens=6, speculate="off")
OPS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "swiglu", "quick_gelu", "rotate", "rotary_store")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vision heads of 16, which are turned in pieces of 8 elements."""
    folder = tmp_path_factory.mktemp("cuda") / "model"
    write_checkpoint(
        folder, replace(TINY, num_hidden_layers=2, vision_config=replace(TINY.vision_config, embed_dim=64))
    )
    return folder


@pytest.fixture
def calls(gpu: Body, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each op was called."""
    counted: Counter[str] = Counter()

    def counting(name: str, kernel: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            counted[name] += 1
            return kernel(*given, **options)

        return call

    for name in (*OPS, "attention", "sample", "linear", "unpack"):
        monkeypatch.setattr(Body, name, counting(name, getattr(Body, name)))
    assert gpu.emulated
    return counted


def test_logits_and_tokens_are_those_of_the_composed_ops(calls: Counter[str], tiny: Path) -> None:
    engine = Engine.load(Profile(model=str(tiny), device="cpu"))
    found, answer = engine.next_logits(QUESTION), engine.generate(QUESTION, GREEDY)
    layers, blocks, steps = 2, 2, len(answer.token_ids) - 1
    passes = steps + 2
    assert calls == {
        "rms_norm": passes * (layers + 1),
        "add_rms_norm": passes * layers,
        "layer_norm": blocks + 1,
        "add_layer_norm": blocks,
        "swiglu": passes * layers,
        "quick_gelu": blocks,
        "rotate": layers + blocks,  # where there is no cache
        "rotary_store": (steps + 1) * layers,
        "attention": steps * layers,
        "sample": steps,
    }, "the tower ran once: its features are kept"
    with native.using("composed"):
        wanted = engine.next_logits(QUESTION)
        assert answer.token_ids == engine.generate(QUESTION, GREEDY).token_ids
    assert difference(found, wanted) < 1e-5


@pytest.fixture
def widening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle computes in float32 only on a CPU: activations are bfloat16 within the packed layers alone."""
    linear, embedding, dtype = cuda_linear.moved_linear, cuda_linear.moved_embedding, "bfloat16"

    def narrow(x: Any, weights: Any, residual: Any = None) -> Any:
        rows = x.reshape([-1, x.shape[-1]])
        parts = [linear(part.astype(dtype), weights).astype("float32") for part in paddle.split(rows, _pieces(rows))]
        out = paddle.concat(parts).reshape([*x.shape[:-1], -1])
        return out if residual is None else out + residual

    monkeypatch.setattr("qvl.ops.linear.moved_linear", narrow)
    monkeypatch.setattr(
        "qvl.ops.linear.moved_embedding", lambda ids, weight, _: embedding(ids, weight, dtype).astype("float32")
    )


def _pieces(rows: Any) -> list[int]:
    """Of rows, as many as the kernel takes."""
    whole, rest = divmod(rows.shape[0], 64)
    return [64] * whole + ([rest] if rest else [])


# Activations of 8 bits in every packed layer.
ROUNDED = 0.03


@pytest.mark.usefixtures("widening")
@pytest.mark.parametrize(("width", "stored"), [("int8", False), ("int4", True)])
def test_packed_weights(width: Any, stored: bool, calls: Counter[str], tiny: Path, tmp_path: Path) -> None:
    folder = tiny
    chosen = chosen_quantization(width, tiny, "gpu:0", "bfloat16")
    assert chosen == Quantization.of(width), "not what Paddle's products take"
    if stored:
        folder = tmp_path / "packed"
        quantise_folder(tiny, folder, chosen)
        assert chosen_quantization("auto", folder, "gpu:0", "bfloat16") == stored_quantization(folder) == chosen
    engine = Engine.load(Profile(model=str(folder), device="cpu", quantize="auto" if stored else width))
    moved = [weight for layer in projections(engine.model) for weight in packed_weights(layer)]
    assert all(weight.moved is not None and not hasattr(weight, "matrix") for weight in moved)
    found, answer = engine.next_logits(QUESTION), engine.generate(QUESTION, GREEDY)
    assert len(answer.token_ids) > 1 and calls["linear"] > 20 and calls["unpack"] > 1
    with native.using("composed"):
        plain = dequantised(tiny, width).next_logits(QUESTION)
    assert difference(found, plain) < ROUNDED


@pytest.mark.usefixtures("widening", "gpu")
@pytest.mark.parametrize("name", ["awq", "gptq-int8"])
def test_what_others_have_quantised(name: str, foreign: Written) -> None:
    folder, plain = foreign(name)
    assert chosen_quantization("auto", folder, "gpu:0", "bfloat16") == chosen_quantization(
        "auto", folder, "cpu", "float32"
    )
    found = Engine.load(Profile(model=str(folder), device="cpu")).next_logits(QUESTION)
    with native.using("composed"):
        wanted = Engine.load(Profile(model=str(plain), device="cpu")).next_logits(QUESTION)
    assert difference(found, wanted) < ROUNDED


def test_a_model_on_a_gpu_keeps_its_dtype(gpu: Body, tiny: Path) -> None:
    config = Engine.open(Profile(model=str(tiny), device="cpu")).config
    model = load_quantised(tiny, config, Quantization.of("int8"), dtype="bfloat16", attention="flash")
    assert {parameter.dtype for parameter in model.parameters()} == {paddle.bfloat16} and gpu.emulated
    assert {layer.dtype for layer in projections(model)} == {paddle.bfloat16}
    words = model.model.embed_tokens
    assert isinstance(words, PackedEmbedding)
    assert words(paddle.to_tensor([1, 2])).dtype == paddle.bfloat16
    assert {block.attn.impl for block in model.visual.blocks} == {"flash"}
    x = paddle.ones([2, 64]).astype("bfloat16")
    mlp = model.model.layers[0].mlp
    with paddle.no_grad():
        assert mlp(x, x).dtype == paddle.bfloat16
        logits = model.logits(x)
    assert logits.dtype == paddle.float32 and np.isfinite(logits.numpy()).all()


def test_what_a_gpu_takes_is_told(gpu: Body, tiny: Path, foreign: Written, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="--quant int8 on a GPU needs --dtype bfloat16 or float16"):
        chosen_quantization("int8", tiny, "gpu:0", "float32")
    with pytest.raises(DeviceError, match="what is quantised on a GPU needs --dtype"):
        chosen_quantization("auto", foreign("awq")[0], "gpu:0", "float32")
    quantise_folder(tiny, tmp_path / "bf16", Quantization.of("bf16"))
    with pytest.raises(DeviceError, match=r"laid out for CPUs and for the native ops of a GPU \(bf16 is for CPUs\)"):
        chosen_quantization("auto", tmp_path / "bf16", "gpu:0", "bfloat16")
    with native.using("composed"):
        assert gpu.emulated and chosen_quantization("int4", tiny, "gpu:0", "float16") == Quantization.for_gpu("int4")
