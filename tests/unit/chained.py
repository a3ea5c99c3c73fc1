"""A model that says what it is told to: each token is followed by the one that comes next in a given order.

The blocks of a real checkpoint are silenced and its head set so that the best next token depends on the newest alone.
What such a model writes is known beforehand, and once it has gone round it repeats itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle

from qvl.profile import Profile
from qvl.runtime.engine import Engine


def chained(untied_checkpoint: Path, successors: Mapping[int, int], **profile: object) -> Engine:
    """An engine of an untied checkpoint whose tokens follow each other as `successors` says."""
    engine = Engine.load(Profile(model=str(untied_checkpoint), device="cpu").revised(dict(profile), "test"))
    config, model = engine.config, engine.model
    random = np.random.default_rng(0)
    embedding = random.standard_normal((config.vocab_size, config.hidden_size)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    head = np.zeros((config.hidden_size, config.vocab_size), np.float32)
    for token, following in successors.items():
        head[:, following] += embedding[token]
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.set_value(paddle.zeros_like(linear.weight))
    model.model.norm.weight.set_value(paddle.ones_like(model.model.norm.weight))
    model.model.embed_tokens.weight.set_value(embedding)
    assert model.lm_head is not None
    model.lm_head.weight.set_value(head)
    return engine


def cycle(engine_tokens: list[int], start: int) -> dict[int, int]:
    """Successors that begin with the first of the tokens behind `start` and go round and round."""
    return {start: engine_tokens[0], **dict(zip(engine_tokens, [*engine_tokens[1:], engine_tokens[0]], strict=True))}
