"""Training a model that several processes have a part of each: their groups, and what their gradients have to share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from qvl.errors import UsageError
from qvl.model.config import ModelConfig
from qvl.model.part import Part
from qvl.training.sums import together


@dataclass(frozen=True)
class Arrangement:
    """How `processes` share a run: each `parts` of them, one after the other, have a model together."""

    process: int = 0
    processes: int = 1
    parts: int = 1

    def check(self, config: ModelConfig) -> None:
        """Raise UsageError where the processes or the model cannot be shared out."""
        if self.processes % self.parts:
            raise UsageError(
                f"{self.processes} devices cannot be shared out to models of {self.parts} parts; "
                "their number has to be a multiple of tensor_parallel"
            )
        Part(0, self.parts).check(config)
        if config.vocab_size % self.parts:
            raise UsageError(f"a vocabulary of {config.vocab_size} cannot be learnt in {self.parts} equal parts")

    @property
    def replicas(self) -> int:
        """Whole models, which see different samples."""
        return self.processes // self.parts

    @property
    def replica(self) -> int:
        """The one that this process has a part of."""
        return self.process // self.parts

    def part(self, group: Any = None) -> Part:
        """Of this process. group: see Part."""
        return Part(self.process % self.parts, self.parts, group)


def arrangement(parts: int, processes: int | None = None) -> Arrangement:
    """Of the processes that were started, or of so many that were not."""
    if processes is not None:
        return Arrangement(0, processes, parts)
    return Arrangement(paddle.distributed.get_rank(), paddle.distributed.get_world_size(), parts)


def part_group() -> Any:
    """The processes that have the parts of one model, as fleet has grouped them."""
    from paddle.distributed import fleet

    return fleet.get_hybrid_communicate_group().get_model_parallel_group()


def mark_parts(learning: Mapping[str, paddle.Tensor], part: Part, config: ModelConfig) -> None:
    """Tell fleet which parameters differ between the parts: it would make embeddings and biases alike."""
    for name, parameter in learning.items():
        parameter.is_distributed = part.cut(name, config) is not None


def gradient(parameter: paddle.Tensor) -> paddle.Tensor:
    """In float32 beside weights of 16 bits."""
    return parameter.main_grad if hasattr(parameter, "main_grad") else parameter.grad


def complete_gradients(learning: Mapping[str, paddle.Tensor], part: Part, config: ModelConfig) -> None:
    """Add up the gradients of which each part has but a share, in place. Called by all parts together.

    Those that all parts have whole, of norms and of the vision tower, are equal already.
    """
    partly = {name: gradient(p) for name, p in learning.items() if part.is_partly_learnt(name, config)}
    wholes = []
    for name, share in partly.items():
        cut = part.cut(name, config)
        if cut is None:
            wholes.append(share)
            continue
        shape = list(share.shape)
        shape[cut.axis] = cut.whole
        held = (*[slice(None)] * cut.axis, slice(cut.start, cut.stop))
        total = paddle.zeros(shape, share.dtype)
        total[held] = share
        paddle.distributed.all_reduce(total, group=part.group)
        share.copy_(total[held], False)
    if wholes:  # factors of LoRA: many and small, so in one sum
        flat = paddle.concat([share.reshape([-1]) for share in wholes])
        paddle.distributed.all_reduce(flat, group=part.group)
        for share, total in zip(wholes, paddle.split(flat, [int(share.size) for share in wholes]), strict=True):
            share.copy_(total.reshape(share.shape), False)


def square_norm(held: Mapping[str, paddle.Tensor], part: Part, config: ModelConfig) -> float:
    """The sum of the squares of all gradients of a model, of which this part has those of `held`.

    What several parts hold counts once. Called by all parts together.
    """
    # In one pass, as when they are clipped; a power and its sum take 40 times as long on a CPU.
    squares = {name: paddle._C_ops.squared_l2_norm(gradient(p).astype("float32")).item() for name, p in held.items()}
    if part.size == 1:
        return float(sum(squares.values()))
    own = sum(square / part.copies(name, config) for name, square in squares.items())
    return together([own], part.group)[0]


class Clip(nn.clip.ClipGradBase):
    """Scales gradients down to a norm of `limit` over all parts, where Paddle would take that of its own part.

    norm: gives the norm that they have.
    """

    def __init__(self, limit: float, norm: Callable[[], float]) -> None:
        super().__init__()
        self._limit, self._norm = limit, norm

    def _dygraph_clip(self, params_grads: list[tuple[paddle.Tensor, paddle.Tensor]]) -> Any:
        factor = self._limit / max(self._norm(), self._limit)
        if factor < 1:
            for _, grad in params_grads:
                grad.scale_(factor)
        return params_grads
