"""One part of a language model that several processes share: what it holds, and how results come together.

Attention heads, the inner width of the MLP and the vocabulary are shared out; norms and the vision tower are whole in
every part. The first matrix of a pair is cut by its outputs and the second by its inputs, so that an attention or an
MLP needs one sum over all parts, as in Megatron-LM (https://arxiv.org/abs/1909.08053). The sums are Paddle's
collectives: NCCL between GPUs, gloo between processes on a CPU. Where a model learns, each sum has its counterpart in
the backward pass: what all parts took in gets the sum of their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from qvl.errors import UsageError
from qvl.model.config import ModelConfig

_MOST = 64  # parts that a refusal names
_FACTORS = {"lora_A": 0, "lora_B": 1}  # the axis that a factor of LoRA has in common with the weight beside it


@dataclass(frozen=True)
class Cut:
    """The stretch of a parameter that a part holds.

    axis: of the parameter as Paddle's layers have it, where a linear weight is [in, out]. whole: the length of that
    axis, of which `start` to `stop` are held.
    """

    axis: int
    start: int
    stop: int
    whole: int


@dataclass(frozen=True)
class Part:
    """Part `rank` of `size`. group: of the processes that have one of them each, as Paddle names it; None is all."""

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, compare=False, repr=False)

    def check(self, config: ModelConfig) -> None:
        """Raise UsageError, with the numbers that would do, where heads or columns cannot be shared out evenly."""
        if not fits(config, self.size):
            some = ", ".join(str(size) for size in range(2, _MOST + 1) if fits(config, size))
            raise UsageError(
                f"a model of {config.num_attention_heads} attention heads, {config.num_key_value_heads} key heads and "
                f"{config.intermediate_size} columns cannot be split in {self.size} equal parts; "
                f"{f'{some} would do' if some else 'it cannot be split'}"
            )

    def query_heads(self, config: ModelConfig) -> range:
        return _even(config.num_attention_heads, self)

    def key_heads(self, config: ModelConfig) -> range:
        """Where there are fewer than parts, several parts hold the same one, and each some of its query heads."""
        count = config.num_key_value_heads
        if count >= self.size:
            return _even(count, self)
        head = self.rank * count // self.size
        return range(head, head + 1)

    def columns(self, config: ModelConfig) -> range:
        """Of the MLP's inner width."""
        return _even(config.intermediate_size, self)

    def words(self, config: ModelConfig) -> range:
        """Rows of the vocabulary: the same number in each part, but for the last, which may have fewer."""
        each = -(-config.vocab_size // self.size)
        first = min(config.vocab_size, self.rank * each)
        return range(first, min(config.vocab_size, first + each))

    def share(self, config: ModelConfig) -> ModelConfig:
        """The shape that this part's cache has."""
        return replace(config, num_key_value_heads=len(self.key_heads(config)))

    def cut(self, name: str, config: ModelConfig) -> Cut | None:
        """The stretch of a parameter of the checkpoint that this part holds; None where it holds all of it."""
        if self.size == 1 or name.startswith("visual."):
            return None
        *_, layer, kind = name.split(".")
        if kind in _FACTORS:
            cut = self.cut(f"{name.rpartition('.')[0]}.weight", config)
            return cut if cut is not None and cut.axis == _FACTORS[kind] else None
        queries, keys, dim = self.query_heads(config), self.key_heads(config), config.head_dim
        outputs = 0 if kind == "bias" else 1
        if layer == "q_proj":
            return _times(outputs, queries, dim, config.num_attention_heads)
        if layer in ("k_proj", "v_proj"):
            return _times(outputs, keys, dim, config.num_key_value_heads)
        if layer == "o_proj":
            return _times(0, queries, dim, config.num_attention_heads)
        if layer in ("gate_proj", "up_proj"):
            return _times(1, self.columns(config), 1, config.intermediate_size)
        if layer == "down_proj":
            return _times(0, self.columns(config), 1, config.intermediate_size)
        if layer in ("embed_tokens", "lm_head"):
            return _times(0 if layer == "embed_tokens" else 1, self.words(config), 1, config.vocab_size)
        return None

    def held(self, name: str, shape: Sequence[int], config: ModelConfig) -> int:
        """How many numbers of a parameter of `shape`, in whichever layout, this part holds."""
        cut = self.cut(name, config)
        return math.prod(shape) if cut is None else math.prod(shape) // cut.whole * (cut.stop - cut.start)

    def copies(self, name: str, config: ModelConfig) -> int:
        """How many parts hold the same stretch of a parameter as this one."""
        if self.cut(name, config) is None:
            return self.size
        layer = name.split(".")[-2]
        return max(1, self.size // config.num_key_value_heads) if layer in ("k_proj", "v_proj") else 1

    def is_partly_learnt(self, name: str, config: ModelConfig) -> bool:
        """Whether this part's gradient of a parameter is but a share, which those of its copies complete.

        So it is for key heads that several parts hold, each for its own query heads, and for a factor of LoRA that is
        whole beside a weight that is not.
        """
        if self.size == 1:
            return False
        path, _, kind = name.rpartition(".")
        beside = self.cut(f"{path}.weight", config) if kind in _FACTORS else self.cut(name, config)
        return beside is not None and self.copies(name, config) > 1

    def summed(self, x: paddle.Tensor) -> paddle.Tensor:
        """The sum over all parts, which may take the place of x."""
        if self.size == 1:
            return x
        if not x.stop_gradient and paddle.is_grad_enabled():
            return _Summed.apply(x, self.group)
        paddle.distributed.all_reduce(x, group=self.group)
        return x

    def shared(self, x: paddle.Tensor) -> paddle.Tensor:
        """x, which each part goes on from: its gradient is the sum of what all parts have."""
        if self.size == 1 or x.stop_gradient or not paddle.is_grad_enabled():
            return x
        return _Shared.apply(x, self.group)

    def joined(self, x: paddle.Tensor, config: ModelConfig) -> paddle.Tensor:
        """[K, words of this part] of each part -> [K, vocab_size] in all of them."""
        if self.size == 1:
            return x
        short = -(-config.vocab_size // self.size) - x.shape[1]
        if short:  # a gather takes the same from each
            x = paddle.concat([x, paddle.zeros([x.shape[0], short], x.dtype)], axis=1)
        parts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(parts, x, group=self.group)
        return paddle.concat(parts, axis=1)[:, : config.vocab_size]


class _Summed(PyLayer):
    """Forward the sum over all parts; backward, where all have the same gradient, that."""

    @staticmethod
    def forward(_: Any, x: paddle.Tensor, group: Any) -> paddle.Tensor:
        total = x.clone()
        paddle.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(_: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return grad


class _Shared(PyLayer):
    """Forward as it is; backward the sum over all parts."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Any) -> paddle.Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        total = grad.clone()
        paddle.distributed.all_reduce(total, group=ctx.group)
        return total


class PartialEmbedding(nn.Embedding):
    """The rows of some words; the sum over all parts is the embedding of any."""

    def __init__(self, config: ModelConfig, part: Part) -> None:
        words = part.words(config)
        super().__init__(len(words), config.hidden_size)
        self._part, self._first = part, words.start

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        own = ids - self._first
        is_own = paddle.logical_and(own >= 0, own < self.weight.shape[0])
        rows = super().forward(paddle.where(is_own, own, paddle.zeros_like(own)))
        return self._part.summed(rows * is_own.astype(rows.dtype).unsqueeze(-1))


def fits(config: ModelConfig, size: int) -> bool:
    """Whether a model can be split in so many equal parts."""
    keys = config.num_key_value_heads
    evenly = config.num_attention_heads % size == 0 and config.intermediate_size % size == 0
    return evenly and (keys % size == 0 or size % keys == 0)


def _even(count: int, part: Part) -> range:
    each = count // part.size
    return range(part.rank * each, (part.rank + 1) * each)


def _times(axis: int, held: range, each: int, whole: int) -> Cut:
    return Cut(axis, held.start * each, held.stop * each, whole * each)
