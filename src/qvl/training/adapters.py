"""LoRA for training: PaddleNLP's layers on our model, kept in the files of Hugging Face PEFT.

PaddleNLP picks layers by regular expression and says nothing when none matches; here the layers are named by their
whole paths, so the vision tower is never caught by name, and a target that is nowhere is an error.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from qvl.errors import CheckpointError, UsageError
from qvl.model.adapter import Adapter, Factors, linear_shapes, write_adapter
from qvl.model.adapter_config import AdapterConfig
from qvl.model.qwen2_vl import Qwen2VL
from qvl.training.homes import import_paddlenlp

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PARTS = ("language", "vision", "merger")

# Where the layers of a part are. `targets` chooses among those of the language model.
_PATTERNS = {
    "language": re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+|lm_head"),
    "vision": re.compile(r"visual\.blocks\.\d+\.(?P<ending>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"),
    "merger": re.compile(r"visual\.(?P<ending>merger\.mlp\.\d+)"),
}


def lora_modules(
    model: Qwen2VL, targets: Sequence[str] = LANGUAGE_TARGETS, parts: Sequence[str] = ("language",)
) -> list[str]:
    """Whole paths of the linear layers meant, in the order of the model.

    targets: endings such as "q_proj" or whole paths, of the language model. parts: language, vision, merger.
    Raises UsageError for an unknown part and a target that no layer of the language model has.
    """
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"LoRA part {part!r}: one of {', '.join(PARTS)} was expected")
    if not parts:
        raise UsageError("LoRA on no part of the model would train nothing")
    names = list(linear_shapes(model))
    chosen: set[str] = set()
    for part in parts:
        found = [name for name in names if _PATTERNS[part].fullmatch(name)]
        if part == "language":
            found = _among(found, targets)
        chosen.update(found)
    return [name for name in names if name in chosen]


def _among(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    if not targets:
        raise UsageError("LoRA on the language model needs targets, such as q_proj")
    found: list[str] = []
    for target in targets:
        matching = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matching:
            endings = sorted({name.rpartition(".")[2] for name in names})
            raise UsageError(f"LoRA target {target!r} is no layer of the language model; it has {', '.join(endings)}")
        found += matching
    return found


def add_lora(
    model: Qwen2VL,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    targets: Sequence[str] = LANGUAGE_TARGETS,
    parts: Sequence[str] = ("language",),
) -> Any:
    """Put LoRA into a model with its weights; return PaddleNLP's LoRAModel around the same model, in training mode.

    Afterwards exactly lora_A [in, rank] and lora_B [rank, out] of the layers meant are trainable, in the dtype of the
    model's weights; B is zero, so nothing has changed yet. Raises UsageError, see `lora_modules`.
    """
    if rank < 1:
        raise UsageError(f"LoRA rank {rank}: 1 or more was expected")
    modules = lora_modules(model, targets, parts)
    lora_config_class, lora_model_class = _paddlenlp()
    config = lora_config_class(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        rslora=rslora,
        target_modules="|".join(re.escape(name) for name in modules),
        dtype=str(model.model.embed_tokens.weight.dtype).removeprefix("paddle."),
    )
    # Without memory: PaddleNLP makes a new weight for each layer, fills it at random and drops it for the old one.
    with paddle.LazyGuard(), _parallel_degree(model):
        lora = lora_model_class(model, config)
    config.target_modules = modules
    for name, parameter in lora.model.named_parameters():
        is_factor = name.endswith((".lora_A", ".lora_B"))
        if is_factor:
            _initialize(parameter, model, name)
        parameter.stop_gradient = not is_factor
    lora.train()
    return lora


def _initialize(factor: paddle.Tensor, model: Qwen2VL, name: str) -> None:
    """As PaddleNLP does. A part of a model draws the whole factor and keeps its stretch, so that all draw the same."""
    cut = model.part.cut(name, model.config)
    if cut is None or name.endswith(".lora_B"):  # which is zero
        factor.initialize()
        return
    shape = list(factor.shape)
    shape[cut.axis] = cut.whole
    initializer = nn.initializer.KaimingUniform(negative_slope=math.sqrt(5), nonlinearity="leaky_relu")
    whole = paddle.create_parameter(shape, factor.dtype, default_initializer=initializer)
    with paddle.no_grad():
        whole[cut.start : cut.stop].clone()._share_underline_tensor_to(factor)


Whole = Callable[[str, paddle.Tensor], paddle.Tensor]


def save_adapter(lora: Any, folder: Path, base_name: str | None, whole: Whole = lambda _, factor: factor) -> None:
    """Write the factors of a LoRAModel as a PEFT folder, float32. base_name: what the base is found by, a hub id say.

    whole: from the name of a factor and what this model has of it, where it is a part of one, to all of it; called once
    for each in the order of `factors_of`. The folder appears when it is complete. Raises CheckpointError when it is
    already there.
    """
    layers = _lora_layers(lora)
    modules = list(layers)
    config = AdapterConfig(
        rank=lora.lora_config.r,
        alpha=lora.lora_config.lora_alpha,
        dropout=lora.lora_config.lora_dropout,
        rslora=lora.lora_config.rslora,
        target_modules=_as_targets(modules, list(linear_shapes(lora.model))),
        base_model=base_name,
    )
    brought = {name: whole(name, factor) for name, factor in factors_of(lora)}
    write_adapter(folder, config, {name: _turned(brought, name) for name in modules})


def load_adapter_into(lora: Any, folder: Path) -> None:
    """Set the factors of a LoRAModel to those of a PEFT folder, whoever made it, to go on training them.

    Raises CheckpointError, naming the layer, when the adapter has other layers, another rank or another scale.
    """
    adapter = Adapter.open(folder)
    adapter.check(linear_shapes(lora.model))
    layers = _lora_layers(lora)
    for name in sorted(adapter.modules.keys() ^ layers.keys()):
        if name in adapter.modules:
            raise CheckpointError(f"{folder}: {name} is in the adapter, but no target of this training")
        raise CheckpointError(f"{folder}: {name} is a target of this training, but not in the adapter")
    for name, layer in layers.items():
        rank, scale = adapter.config.rank_of(adapter.modules[name]), adapter.scale(name)
        if rank != layer.r or not np.isclose(scale, layer.scaling):
            raise CheckpointError(
                f"{folder}: {name} has rank {rank} and scale {scale:g}, this training {layer.r} and {layer.scaling:g}"
            )
    for name, layer in layers.items():
        a, b = adapter.factors(name)
        for kind, parameter, values in (("lora_A", layer.lora_A, a.T), ("lora_B", layer.lora_B, b.T)):
            if (cut := lora.model.part.cut(f"{name}.{kind}", lora.model.config)) is not None:
                values = np.take(values, range(cut.start, cut.stop), axis=cut.axis)
            tensor = paddle.to_tensor(np.ascontiguousarray(values))
            parameter.set_value(tensor.astype(parameter.dtype))


def factors_of(lora: Any) -> Iterator[tuple[str, paddle.Tensor]]:
    """The factors of a LoRAModel by name, such as "model.layers.0.self_attn.q_proj.lora_A"."""
    for name, layer in _lora_layers(lora).items():
        yield f"{name}.lora_A", layer.lora_A
        yield f"{name}.lora_B", layer.lora_B


def _lora_layers(lora: Any) -> dict[str, Any]:
    return {name: layer for name, layer in lora.model.named_sublayers() if hasattr(layer, "lora_A")}


def _turned(factors: Mapping[str, paddle.Tensor], name: str) -> Factors:
    """Those of a layer. PaddleNLP has them as [in, r] and [r, out], PEFT turned over."""
    a, b = (factors[f"{name}.{kind}"].astype("float32").numpy().T for kind in ("lora_A", "lora_B"))
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _as_targets(modules: Sequence[str], every: Sequence[str]) -> tuple[str, ...]:
    """Endings where they mean these layers and no other, which also fits other spellings of the paths; else paths."""
    chosen = set(modules)
    targets: dict[str, None] = {}
    for name in modules:
        ending = _ending(name)
        means = {other for other in every if other == ending or other.endswith(f".{ending}")}
        targets[ending if means <= chosen else name] = None
    return tuple(targets)


def _ending(name: str) -> str:
    for part in ("vision", "merger"):
        match = _PATTERNS[part].fullmatch(name)
        if match:
            return match["ending"]
    return name.rpartition(".")[2]


@contextmanager
def _parallel_degree(model: Qwen2VL) -> Iterator[None]:
    """LoRAModel asks the model's configuration for this while it is made; ours knows nothing of it."""

    class Degree:
        tensor_parallel_degree = -1

    holder: Any = model
    config, holder.config = holder.config, Degree()
    try:
        yield
    finally:
        holder.config = config


def _paddlenlp() -> tuple[Any, Any]:
    """LoRAConfig and LoRAModel, without what importing and making them logs. Takes seconds the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_paddlenlp()
        from paddlenlp.utils.log import logger

        logger.set_level("WARNING")
        from paddlenlp.peft import LoRAConfig, LoRAModel

    return LoRAConfig, LoRAModel
