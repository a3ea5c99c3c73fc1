"""Training on several devices, each with the whole model and its own samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvl.model.config import ModelConfig
from qvl.planning.machines import Machine
from qvl.profile_training import TrainingOptions
from qvl.training.estimate import Estimate


@dataclass(frozen=True)
class TrainingPlan:
    """Bytes on one device by parts, and of one update.

    sent: to other devices: gradients in float32, summed by a ring, and with sharding the parameters that were changed.
    flops: of one device for an update whose samples have `tokens` each.
    """

    memory: Estimate
    tokens: int
    sent: int
    flops: float

    def step_seconds(self, machine: Machine, devices: int) -> float:
        """The least time of an update."""
        return self.flops / machine.flops + (self.sent / machine.sending(devices) if devices > 1 else 0.0)

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self.memory, name) for name in self.memory.__dataclass_fields__}
        return {**parts, "total": self.memory.total, "tokens": self.tokens, "sent": self.sent, "flops": self.flops}


def plan_training(
    config: ModelConfig, options: TrainingOptions, *, dtype: str, devices: int, tokens: int
) -> TrainingPlan:
    """tokens: of each sample, half of them of a picture, say; the vision tower counts as many patches as the estimate.

    Of each parameter of the language model a token costs 2 operations forward, 2 for the gradient of what came in, and
    2 for the gradient of the parameter where it learns; with recompute, 2 more. Attention adds 2 * tokens * hidden_size
    a layer and direction.
    """
    from qvl.training.run import estimate_training

    micro = options.micro_batch_size * tokens
    memory, learning, total = estimate_training(config, options, dtype, micro, devices)
    samples = options.batch_size / devices
    forward = 2.0 * total * tokens + 2.0 * tokens * tokens * config.hidden_size * config.num_hidden_layers
    passes = 2 + (1 if options.recompute else 0)
    flops = samples * (passes * forward + 2.0 * learning * tokens)
    ring = (devices - 1) / devices
    sharded = options.sharding == "stage1"
    size = 4 if dtype == "float32" else 2
    # Sharded: gradients go to whoever keeps their state, and what is learnt comes back.
    sent = ring * learning * (4 + size if sharded else 2 * 4)
    return TrainingPlan(memory, tokens, round(sent), flops)
