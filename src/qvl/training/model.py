"""The model of inference with a loss at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import paddle
from paddle import nn

from qvl.model.qwen2_vl import ModelInputs, Qwen2VL
from qvl.training.batch import Batch
from qvl.training.loss import linear_cross_entropy

# Where each part of the model lies, by the start of its parameters' names; the longest that fits decides.
PARTS = {"visual.merger.": "merger", "visual.": "vision", "": "language"}


def part_of(name: str) -> str:
    """The part a parameter belongs to: "vision", "merger" or "language"."""
    return PARTS[max((prefix for prefix in PARTS if name.startswith(prefix)), key=len)]


def choose_trained(model: Qwen2VL, parts: Sequence[str]) -> None:
    """Let the parameters of these parts learn and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = part_of(name) not in parts


class TrainingModel(nn.Layer):
    """Loss of a batch: the sum over its supervised tokens, divided by the batch's normaliser. float32 [].

    ends: a context in which the embedding and the head are whole.
    """

    def __init__(
        self,
        model: Qwen2VL,
        *,
        loss_chunk: int,
        recompute: bool,
        ends: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.qwen = model
        self.ends = ends
        self.loss_chunk = loss_chunk
        model.model.recompute = recompute
        self.vision_learns = any(not parameter.stop_gradient for parameter in model.visual.parameters())

    def forward(self, batch: Batch) -> paddle.Tensor:
        with self.ends():
            return self._loss(batch)

    def _loss(self, batch: Batch) -> paddle.Tensor:
        model = self.qwen
        inputs = ModelInputs(
            input_ids=paddle.to_tensor(batch.input_ids),
            position_ids=paddle.to_tensor(batch.position_ids),
            lengths=batch.lengths,
            features=self._features(batch),
            merge_index=None if batch.merge_index is None else paddle.to_tensor(batch.merge_index),
            logits_index=paddle.to_tensor(batch.target_index),
        )
        hidden = model.hidden(inputs)
        tied = model.lm_head is None
        weight = model.model.embed_tokens.weight if model.lm_head is None else model.lm_head.weight
        targets = paddle.to_tensor(batch.targets)
        total = linear_cross_entropy(
            hidden,
            weight,
            targets,
            tied=tied,
            chunk=self.loss_chunk,
            low_rank=_low_rank(model.lm_head, model.part.shared(hidden)),
            part=model.part,
            first_word=model.part.words(model.config).start,
        )
        return total / batch.normaliser

    def _features(self, batch: Batch) -> paddle.Tensor | None:
        if batch.patches is None:
            return None
        visual = self.qwen.visual
        patches = paddle.to_tensor(batch.patches).astype(visual.patch_embed.proj.weight.dtype)
        if self.vision_learns:
            return visual(patches, list(batch.grids))
        with paddle.no_grad():  # a frozen tower keeps nothing for a backward pass
            return visual(patches, list(batch.grids))


def _low_rank(head: nn.Layer | None, hidden: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor] | None:
    """What LoRA adds to the head's logits, as two factors, [K, r] and [r, V]: the head itself is never called here."""
    if head is None or not hasattr(head, "lora_A"):
        return None
    return (head.lora_dropout(hidden) @ head.lora_A) * head.scaling, head.lora_B
