"""Training on several devices: models that learn from different samples, each whole on a device or in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from qvl.model.config import ModelConfig
from qvl.planning.machines import Machine
from qvl.profile_training import TrainingOptions
from qvl.training.estimate import Estimate


@dataclass(frozen=True)
class TrainingPlan:
    """Bytes on one device by parts, and of one update.

    sent: to other devices. Between models, gradients in float32, summed by a ring, and with sharding the parameters
    that were changed; with stages 2 and 3 gradients of every micro-batch, with stage 3 weights for every pass. Between
    the parts of one, `sent_in_parts` of it: what layers give, and its gradients.
    flops: of one device for an update whose samples have `tokens` each.
    """

    memory: Estimate
    tokens: int
    parts: int
    sent: int
    sent_in_parts: int
    flops: float

    def step_seconds(self, machine: Machine, devices: int) -> float:
        """The least time of an update. The parts of a model are next to each other."""
        between = self.sent - self.sent_in_parts
        sending = between / machine.sending(devices) if devices > self.parts else 0.0
        if self.parts > 1:
            sending += self.sent_in_parts / machine.sending(self.parts)
        return self.flops / machine.flops + sending

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self.memory, name) for name in self.memory.__dataclass_fields__}
        figures = {name: getattr(self, name) for name in ("tokens", "parts", "sent", "sent_in_parts", "flops")}
        return {**parts, "total": self.memory.total, **figures}


def plan_training(
    config: ModelConfig, options: TrainingOptions, *, dtype: str, devices: int, tokens: int, parts: int = 1
) -> TrainingPlan:
    """tokens: of each sample, half of them of a picture, say; the vision tower counts as many patches as the estimate.

    Of each parameter of the language model a token costs 2 operations forward, 2 for the gradient of what came in, and
    2 for the gradient of the parameter where it learns; with recompute, 2 more. Attention adds 2 * tokens * hidden_size
    a layer and direction. In parts, each layer has two sums forward and two backward, and two more with recompute; the
    embedding has one, and so has the gradient of the head. Factors of LoRA that parts have in common are not counted.
    """
    from qvl.training.run import estimate_training
    from qvl.training.shards import own_stage

    micro = options.micro_batch_size * tokens
    memory, _, _ = estimate_training(config, options, dtype, micro, devices, parts)
    # What a device computes with, whatever it keeps of it.
    used, _, _ = estimate_training(config, replace(options, sharding="none"), dtype, micro, devices, parts)
    size, replicas = 4 if dtype == "float32" else 2, devices // parts
    held, learning = used.weights // size, used.gradients // 4
    samples = options.batch_size / replicas
    forward = 2.0 * held * tokens + 2.0 * tokens * tokens * config.hidden_size / parts * config.num_hidden_layers
    passes = 2 + (1 if options.recompute else 0)
    flops = samples * (passes * forward + 2.0 * learning * tokens)
    stage = own_stage(options) if devices > 1 else 0
    if stage:
        matrices = _in_matrices(config, devices)
        learnt = matrices if options.method == "full" else 0
        batches = samples / options.micro_batch_size
        # Gradients with each micro-batch; weights once, or each time that a layer runs.
        fetched = size * matrices * (1 if stage == 2 else 2 * batches)
        between = (devices - 1) / devices * (fetched + 4 * learnt * batches + 2 * 4 * (learning - learnt))
    else:
        # Sharded: gradients go to whoever keeps their state, and what is learnt comes back.
        between = (replicas - 1) / replicas * learning * (2 * 4 if options.sharding == "none" else 4 + size)
    sums = config.num_hidden_layers * (6 if options.recompute else 4) + 2
    within = samples * sums * tokens * config.hidden_size * size * 2 * (parts - 1) / parts
    return TrainingPlan(memory, tokens, parts, round(between + within), round(within), flops)


def _in_matrices(config: ModelConfig, devices: int) -> int:
    """Numbers in the matrices that so many devices share out."""
    from qvl.model.weights import empty_model
    from qvl.training.shards import shared_rows

    shapes = {name: tuple(parameter.shape) for name, parameter in empty_model(config, "bfloat16").named_parameters()}
    return sum(math.prod(shapes[name]) for name in shared_rows(shapes, devices))
