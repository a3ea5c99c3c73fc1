"""Inference on several devices, each with a part of the language model: see `qvl.model.part`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qvl.model.config import ModelConfig
from qvl.model.part import Part
from qvl.model.shapes import parameter_shapes
from qvl.planning.machines import Machine
from qvl.processing.prompt import Prompt, Vision
from qvl.runtime import memory
from qvl.runtime.cache import cache_bytes

_LOGIT = 4  # bytes of one


@dataclass(frozen=True)
class InferenceSetting:
    """context: tokens that a cache has room for, all but the new ones of a prompt with one picture. batch: answers at a
    time, each with a cache.
    """

    config: ModelConfig
    picture: Vision
    dtype: str = "bfloat16"
    cache_dtype: str = "bfloat16"
    devices: int = 1
    context: int = 32768
    new_tokens: int = 512
    batch: int = 1


@dataclass(frozen=True)
class InferencePlan:
    """Bytes on one device, and of one step of the answer.

    workspace: at its largest, for a prompt that fills the context. read: of its memory by a step with full caches.
    sent: to other devices by a step; exchanges: how many sums and gathers it has. prompt_sent: by the prompt.
    prompt_flops: of this device for the prompt.
    """

    weights: int
    cache: int
    workspace: int
    read: int
    sent: int
    exchanges: int
    prompt_sent: int
    prompt_flops: float

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace

    def step_seconds(self, machine: Machine, devices: int) -> float:
        """The least time of a token of each answer: reading what there is to read, and exchanging."""
        waiting = self.exchanges * machine.latency if devices > 1 else 0.0
        return self.read / machine.bandwidth + self.sent / machine.sending(devices) + waiting

    def prompt_seconds(self, machine: Machine, devices: int) -> float:
        """The least time of a prompt that fills the context, without its picture."""
        return self.prompt_flops / machine.flops + self.prompt_sent / machine.sending(devices)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.__dataclass_fields__, "total")}


def plan_inference(setting: InferenceSetting) -> InferencePlan:
    """Raises UsageError where the model cannot be split in so many parts.

    A sum of S bytes over n devices sends 2 (n - 1) / n * S from each, as a ring does; a gather of S bytes in all
    (n - 1) / n * S. A layer has two sums of [tokens, hidden_size], the embedding one; logits are gathered in float32.
    """
    config, devices = setting.config, setting.devices
    part = Part(0, devices)
    part.check(config)
    size = memory.ITEMSIZE[setting.dtype]
    share = part.share(config)
    cache = setting.batch * cache_bytes(share, setting.context, setting.cache_dtype)
    prompt = setting.context - setting.new_tokens
    weights = _held(config, part)
    learned = sum(count for name, count in weights.items() if _is_read(name, config))
    sums = 2 * config.num_hidden_layers + 1
    row = config.hidden_size * size
    ring = 2 * (devices - 1) / devices
    gathered = (devices - 1) / devices * config.vocab_size * _LOGIT
    layers = sum(count for name, count in weights.items() if name.startswith("model.layers."))
    # Causal attention: each token looks at half of the prompt on average, once for its scores and once for the values.
    attention = 2 * prompt * prompt * len(part.query_heads(config)) * config.head_dim * config.num_hidden_layers
    return InferencePlan(
        weights=sum(weights.values()) * size,
        cache=cache,
        workspace=_workspace(setting, share),
        read=learned * size + cache,
        sent=round(setting.batch * (sums * ring * row + gathered)),
        exchanges=sums + 1,
        prompt_sent=round(sums * ring * row * prompt + gathered),
        prompt_flops=2.0 * layers * prompt + attention,
    )


def _held(config: ModelConfig, part: Part) -> dict[str, int]:
    """Numbers of each parameter that a part has."""
    return {name: part.held(name, shape, config) for name, shape in parameter_shapes(config).items()}


def _is_read(name: str, config: ModelConfig) -> bool:
    """Whether a step reads all of a parameter: of an embedding that is no head only a row."""
    if name.startswith("visual."):
        return False
    return config.tie_word_embeddings or "embed_tokens" not in name


def _workspace(setting: InferenceSetting, share: ModelConfig) -> int:
    """What a prompt that fills the context takes while it runs, by the runtime's own estimate."""
    tokens = setting.context - setting.new_tokens
    ids, places = np.broadcast_to(np.int64(0), (tokens,)), np.broadcast_to(np.int64(0), (3, tokens))
    prompt = Prompt(ids, places, tokens, (setting.picture,))
    need = memory.need(share, prompt, setting.new_tokens, setting.dtype, 0, memory.Held(setting.cache_dtype))
    return max(need.vision, need.prefill)
