"""Quantised layers on a GPU, with stand-ins for Paddle's products, which only GPUs have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import quant

from qvl.errors import DeviceError
from qvl.hub.random_checkpoint import TINY, RandomWeights
from qvl.model.packed import projections
from qvl.model.packed_weights import load_quantised
from qvl.model.quantization import Quantization
from qvl.model.weight_only import WeightOnlyProjection
from qvl.model.weights import load_model
from qvl.runtime.decode import encode_vision, prompt_inputs
from tests.conftest import CheckpointOf
from tests.golden import GOLDEN
from tests.unit.quantized_support import QUESTION, difference, engine


@dataclass
class FakeGpu:
    """Quantises to int8 by output, and by groups where they are asked for, and keeps what was asked."""

    asked: list[tuple[str, int]] = field(default_factory=list)

    def quantize(self, x: Any, algo: str, group_size: int) -> tuple[Any, Any]:
        self.asked.append((algo, group_size))
        k, n = x.shape
        groups = x.numpy().reshape(1 if group_size < 0 else k // group_size, -1, n)
        most = 127 if algo.endswith("int8") else 7
        scales = np.abs(groups).max(axis=1) / most
        codes = np.rint(groups / scales[:, None]).astype(np.int8).reshape(k, n).T
        return paddle.to_tensor(np.ascontiguousarray(codes)), paddle.to_tensor(scales)

    def linear(
        self,
        x: Any,
        weight: Any,
        bias: Any = None,
        weight_scale: Any = None,
        weight_dtype: str = "",
        group_size: int = 0,
    ) -> Any:
        assert weight_dtype == self.asked[-1][0].removeprefix("weight_only_") and group_size == self.asked[-1][1]
        scales = weight_scale.repeat_interleave(weight.shape[1] // weight_scale.shape[0], axis=0)
        out = x.matmul(weight.astype("float32").t() * scales)
        return out if bias is None else out + bias


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(quant, "weight_quantize", fake.quantize)
    monkeypatch.setattr(quant, "weight_only_linear", fake.linear)
    return fake


@pytest.mark.parametrize("variant", ["tiny", "untied", "paddle"])
@pytest.mark.parametrize(("width", "group"), [("int8", -1), ("int4", 64)])
def test_the_layers_are_quantised_and_all_else_stays(
    width: Any, group: int, variant: str, gpu: FakeGpu, checkpoint_variant: CheckpointOf
) -> None:
    folder = checkpoint_variant(variant)
    plain = engine(folder)
    model = load_quantised(folder, plain.config, Quantization.for_gpu(width), dtype="float32")
    assert set(gpu.asked) == {(f"weight_only_{width}", group)}
    assert len(gpu.asked) == 4 * plain.config.num_hidden_layers, "q, k and v are one, gate and up are one"
    assert all(layer.names[0].startswith("model.layers.") for layer in projections(model))
    wanted = load_model(folder, plain.config)
    kept, original = dict(model.named_parameters()), dict(wanted.named_parameters())
    assert ("lm_head.weight" in kept) == (variant == "untied") and "model.embed_tokens.weight" in kept
    for name, parameter in kept.items():
        np.testing.assert_array_equal(parameter.numpy(), original[name].numpy(), err_msg=name)
    # What is left of the weights, in the plain model.
    scheme = {"int8": 127, "int4": 7}[width]
    for layer in projections(model):
        for name in layer.names:
            w = original[f"{name}.weight"].numpy()
            parts = w.reshape(1 if group < 0 else w.shape[0] // group, -1, w.shape[1])
            scales = np.abs(parts).max(axis=1, keepdims=True) / scheme
            original[f"{name}.weight"].set_value((np.rint(parts / scales) * scales).reshape(w.shape).astype(np.float32))
    prompt = plain.prompt(QUESTION)
    with paddle.no_grad():
        logits = [m(prompt_inputs(plain.config, prompt, encode_vision(m, prompt)))[0].numpy() for m in (model, wanted)]
    assert difference(*logits) < 2e-5


def test_an_adapter_is_added_to_them(gpu: FakeGpu, tiny_checkpoint: Path) -> None:
    from qvl.model.adapter import Adapter, apply_adapter

    plain = engine(tiny_checkpoint)
    prompt = plain.prompt(QUESTION)
    adapter = Adapter.open(GOLDEN / "adapter" / "language")
    moved = []
    for model in (
        load_model(tiny_checkpoint, plain.config),
        load_quantised(tiny_checkpoint, plain.config, Quantization.for_gpu("int8"), dtype="float32"),
    ):
        with paddle.no_grad():
            inputs = prompt_inputs(plain.config, prompt, encode_vision(model, prompt))
            before = model(inputs)[0].numpy()
            take_off = apply_adapter(model, adapter)
            moved.append(model(inputs)[0].numpy() - before)
            take_off()
            np.testing.assert_array_equal(model(inputs)[0].numpy(), before)
    assert gpu.asked and difference(moved[1], moved[0]) < 0.1


def test_sizes_that_its_kernels_do_not_take_are_refused() -> None:
    scheme = Quantization.for_gpu("int4").language
    with pytest.raises(DeviceError, match=r"layer: .*inputs in multiples of 64 and outputs of 16, not 96 and 64"):
        WeightOnlyProjection(["layer"], [64], 96, scheme, "float16")
    with pytest.raises(DeviceError, match="not 64 and 40"):
        WeightOnlyProjection(["layer"], [32, 8], 64, scheme, "float16")


@pytest.mark.parametrize(("width", "group"), [("int8", -1), ("int4", 64)])
def test_paddles_own_quantiser_takes_what_it_is_given(width: str, group: int) -> None:
    """It also runs on a CPU, where the architecture that it quantises for has to be named."""
    weights = RandomWeights(replace(TINY, torch_dtype="float16"), 0).tensor("model.layers.0.mlp.down_proj.weight")
    x = paddle.to_tensor(np.ascontiguousarray(weights.T)).astype("float16")
    codes, scales = quant.weight_quantize(x, algo=f"weight_only_{width}", arch=80, group_size=group)
    assert codes.dtype == paddle.int8 and codes.size == x.size // (1 if width == "int8" else 2)
    assert scales.size == x.shape[1] * (1 if group < 0 else x.shape[0] // group)
