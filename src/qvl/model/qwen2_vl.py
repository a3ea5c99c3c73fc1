"""Qwen2-VL whole: vision tower, language model and the head that gives logits.

No state of a conversation is kept here. Sublayers carry the checkpoint's names, so a parameter's name is its name in
the Hugging Face file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn

from qvl import ops
from qvl.model.config import ModelConfig
from qvl.model.language import KeyValueCache, LanguageModel
from qvl.model.packed import PackedEmbedding
from qvl.model.part import Part
from qvl.model.vision import VisionTower


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """New tokens of one or more sequences, laid end to end.

    input_ids: int64 [N]. position_ids: int64 [3, N]. lengths: new tokens of each sequence, N in all.
    features: [V, hidden_size] from the vision tower; merge_index: int64 [N], where each row comes from, its own number
    for the embedding of its token or N + j for feature j.
    logits_index: int64 [K], the rows whose logits are wanted; None is every row, which for a long prompt is most of
    the memory a run takes. starts: tokens that each sequence's cache holds, int32 on the device, where they are there
    already.
    """

    input_ids: paddle.Tensor
    position_ids: paddle.Tensor
    lengths: Sequence[int]
    features: paddle.Tensor | None = None
    merge_index: paddle.Tensor | None = None
    logits_index: paddle.Tensor | None = None
    starts: paddle.Tensor | None = None


class Qwen2VL(nn.Layer):
    """config: of the whole model, also where this is a part of it.

    held: what there is here of each parameter. That is its part, unless training keeps stretches of parameters and
    fetches the rest where a layer runs.
    """

    def __init__(
        self, config: ModelConfig, attention: ops.AttentionImpl = "composed", part: Part | None = None
    ) -> None:
        super().__init__()
        self.config, self.part = config, part or Part()
        self.held: Part = self.part
        self.visual = VisionTower(config.vision_config, attention)
        self.model = LanguageModel(config, attention, self.part)
        words = len(self.part.words(config))
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, words, bias_attr=False)

    def features(self, patches: npt.NDArray[np.float32], grids: Sequence[tuple[int, int, int]]) -> paddle.Tensor:
        """Of pictures and slices of clips: patches float32 [P, 1176] -> [tokens, hidden_size]."""
        dtype = self.visual.patch_embed.proj.weight.dtype
        return self.visual(paddle.to_tensor(patches).astype(dtype), list(grids))

    def embed(self, inputs: ModelInputs) -> paddle.Tensor:
        """Token embeddings [N, hidden_size], with vision features in the places of their pads."""
        hidden = self.model.embed_tokens(inputs.input_ids)
        if inputs.features is None:
            return hidden
        # A gather, since Paddle has it for every dtype on every device, which is not so for scatter.
        return paddle.gather(paddle.concat([hidden, inputs.features], axis=0), inputs.merge_index, axis=0)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[K, hidden_size] -> float32 [K, vocab_size]."""
        words = self.model.embed_tokens
        if self.lm_head is not None:
            out = self.lm_head(hidden)
        elif isinstance(words, PackedEmbedding):
            out = words.logits(hidden)
        else:
            out = paddle.matmul(hidden, words.weight, transpose_y=True)
        return self.part.joined(out.astype("float32"), self.config)

    def forward(self, inputs: ModelInputs, caches: Sequence[KeyValueCache] | None = None) -> paddle.Tensor:
        """Logits float32 [K, vocab_size] of the rows asked for. With caches, they grow by the new tokens."""
        return self.logits(self.hidden(inputs, caches))

    def hidden(self, inputs: ModelInputs, caches: Sequence[KeyValueCache] | None = None) -> paddle.Tensor:
        """What `logits` takes: the last hidden states [K, hidden_size] of the rows asked for."""
        hidden = self.model(self.embed(inputs), inputs.position_ids, inputs.lengths, caches, inputs.starts)
        if inputs.logits_index is None:
            return hidden
        return paddle.gather(hidden, inputs.logits_index, axis=0)
