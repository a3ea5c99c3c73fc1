"""The decode loop: prompts in, token ids out. Knows ids and positions, nothing of text.

Each prompt is prefilled by itself; then all that are still going take one step together. Their tokens lie end to end
without padding and each has its own cache, so a row gives what it gives alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from qvl.model.config import ModelConfig
from qvl.model.qwen2_vl import ModelInputs, Qwen2VL
from qvl.processing.prompt import Prompt, Vision, merge_index
from qvl.runtime.cache import KVCache
from qvl.runtime.sampler import Sampler

# Patches of a clip that go through the vision tower together: 2048 tokens' worth, enough to keep a GPU busy.
PATCHES_AT_ONCE = 8192


@dataclass
class Row:
    """One answer in the making: its cache, its sampler, where its next token sits, and the newest token."""

    cache: KVCache
    sampler: Sampler
    next_position: int
    token: int
    vision_seconds: float
    prefill_seconds: float


def prefill(model: Qwen2VL, prompt: Prompt, sampler: Sampler, capacity: int) -> Row:
    """Run a prompt and draw its first token. `capacity`: tokens to set the cache up for, prompt included."""
    start = time.perf_counter()
    dtype = str(model.model.embed_tokens.weight.dtype).removeprefix("paddle.")
    features = encode_vision(model, prompt)
    if features is not None:
        _wait()
    encoded = time.perf_counter()
    cache = KVCache(model.config, capacity, dtype)
    inputs = prompt_inputs(model.config, prompt, features)
    token = sampler.draw(model(inputs, [cache])[0].numpy())
    end = time.perf_counter()
    return Row(cache, sampler, prompt.next_position, token, encoded - start, end - encoded)


def prompt_inputs(
    config: ModelConfig, prompt: Prompt, features: paddle.Tensor | None, *, last_only: bool = True
) -> ModelInputs:
    """What the model reads of a prompt. last_only: logits of the last token alone, which is all that decoding needs."""
    return ModelInputs(
        input_ids=paddle.to_tensor(prompt.input_ids),
        position_ids=paddle.to_tensor(prompt.position_ids),
        lengths=[len(prompt)],
        features=features,
        merge_index=None if features is None else paddle.to_tensor(merge_index(prompt.input_ids, config)),
        logits_index=paddle.to_tensor(np.asarray([len(prompt) - 1])) if last_only else None,
    )


def encode_vision(model: Qwen2VL, prompt: Prompt) -> paddle.Tensor | None:
    """Features of all pictures and clips, [tokens, hidden_size].

    One picture after the other, and a long clip in groups of slices: attention does not cross them, so the result is
    the same and the peak of memory is that of one group.
    """
    if not prompt.visions:
        return None
    dtype = model.visual.patch_embed.proj.weight.dtype
    features = []
    for vision in prompt.visions:
        slices, height, width = vision.grid_thw
        for first in range(0, slices, slices_at_once(vision)):
            count = min(slices_at_once(vision), slices - first)
            rows = slice(first * height * width, (first + count) * height * width)
            patches = paddle.to_tensor(vision.patches[rows]).astype(dtype)
            features.append(model.visual(patches, [(count, height, width)]))
    return features[0] if len(features) == 1 else paddle.concat(features, axis=0)


def slices_at_once(vision: Vision) -> int:
    """Temporal slices of a clip that are encoded together."""
    _, height, width = vision.grid_thw
    return max(1, PATCHES_AT_ONCE // (height * width))


def step(model: Qwen2VL, rows: Sequence[Row]) -> None:
    """Feed each row its newest token and draw the next one."""
    positions = np.asarray([row.next_position for row in rows], np.int64)
    inputs = ModelInputs(
        input_ids=paddle.to_tensor(np.asarray([row.token for row in rows], np.int64)),
        position_ids=paddle.to_tensor(np.broadcast_to(positions, (3, len(rows))).copy()),
        lengths=[1] * len(rows),
    )
    logits = model(inputs, [row.cache for row in rows]).numpy()
    for row, scores in zip(rows, logits, strict=True):
        row.token = row.sampler.draw(scores)
        row.next_position += 1


def _wait() -> None:
    """Let a GPU finish, so that the time of a stage is its own."""
    if paddle.device.get_device().startswith("gpu"):  # a GPU build may well run on the CPU
        paddle.device.synchronize()
