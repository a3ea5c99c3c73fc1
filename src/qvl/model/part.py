"""One part of a language model that several processes share: what it holds, and how results come together.

Attention heads, the inner width of the MLP and the vocabulary are shared out; norms and the vision tower are whole in
every part. The first matrix of a pair is cut by its outputs and the second by its inputs, so that an attention or an
MLP needs one sum over all parts, as in Megatron-LM (https://arxiv.org/abs/1909.08053). The sums are Paddle's
collectives: NCCL between GPUs, gloo between processes on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import paddle
from paddle import nn

from qvl.errors import UsageError
from qvl.model.config import ModelConfig

_MOST = 64  # parts that a refusal names


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
    """Part `rank` of `size`."""

    rank: int = 0
    size: int = 1

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

    def summed(self, x: paddle.Tensor) -> paddle.Tensor:
        """The sum over all parts, in place of x."""
        if self.size > 1:
            paddle.distributed.all_reduce(x)
        return x

    def joined(self, x: paddle.Tensor, config: ModelConfig) -> paddle.Tensor:
        """[K, words of this part] of each part -> [K, vocab_size] in all of them."""
        if self.size == 1:
            return x
        short = -(-config.vocab_size // self.size) - x.shape[1]
        if short:  # a gather takes the same from each
            x = paddle.concat([x, paddle.zeros([x.shape[0], short], x.dtype)], axis=1)
        parts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(parts, x)
        return paddle.concat(parts, axis=1)[:, : config.vocab_size]


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
