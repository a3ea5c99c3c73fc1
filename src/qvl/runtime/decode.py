"""Prompts and new tokens through the model, into caches. Knows ids and positions, nothing of text or of sampling.

Each prompt is prefilled by itself; then all answers that are going take one step together. Their tokens lie end to end
without padding and each has its own cache, so a row gives what it gives alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import paddle

from qvl.model.config import ModelConfig
from qvl.model.qwen2_vl import ModelInputs
from qvl.processing.prompt import Prompt, Vision, merge_index
from qvl.runtime.features import FeatureCache

# Patches of a clip that go through the vision tower together: 2048 tokens' worth, enough to keep a GPU busy.
PATCHES_AT_ONCE = 8192

Logits = npt.NDArray[np.float32]


class SequenceCache(Protocol):
    """The cache of one sequence: a KVCache, or what stands for one that lies elsewhere."""

    capacity: int

    def __len__(self) -> int: ...
    @property
    def untouched(self) -> int: ...
    def truncate(self, tokens: int) -> None: ...
    def reserve(self, capacity: int) -> None: ...
    def fill(self, tokens: int, dtype: str) -> None: ...


class Runner(Protocol):
    """What a prompt goes through: a Qwen2VL, or what stands for one that lies elsewhere."""

    config: ModelConfig

    def features(self, patches: npt.NDArray[np.float32], grids: Sequence[tuple[int, int, int]]) -> paddle.Tensor: ...
    def __call__(self, inputs: ModelInputs, caches: Any = None) -> paddle.Tensor: ...


@dataclass(frozen=True, eq=False)
class Prefilled:
    """What running a prompt gave.

    logits: float32 [vocab_size], of the token behind the prompt. reused_tokens: of the prompt, in the cache before.
    encoded_visions: pictures and clips that went through the vision tower. Times in seconds.
    """

    logits: Logits
    reused_tokens: int
    encoded_visions: int
    vision_seconds: float
    prefill_seconds: float


@dataclass(frozen=True, eq=False)
class Feed:
    """New tokens of one sequence: they go behind what its cache holds, at `position`, the next one, and so on."""

    cache: SequenceCache
    token_ids: Sequence[int]
    position: int


def prefill(model: Runner, prompt: Prompt, cache: SequenceCache, features: FeatureCache) -> Prefilled:
    """Run what of a prompt the cache does not hold yet, which has to be a token at least.

    Broken off in the middle, also by Ctrl-C, the cache holds what it held before.
    """
    start = time.perf_counter()
    reused = len(cache)
    needed = visions_behind(model.config, prompt, reused)
    encoded, new = encode_visions(model, needed, features)
    if encoded is not None:
        _wait()
    ready = time.perf_counter()
    inputs = prompt_inputs(model.config, prompt, encoded, skip=reused)
    try:
        logits: Logits = model(inputs, [cache])[0].numpy()
    except BaseException:
        cache.truncate(reused)  # tokens are counted before they are written, so the last layer's may be missing
        raise
    return Prefilled(logits, reused, new, ready - start, time.perf_counter() - ready)


def advance(model: Runner, feeds: Sequence[Feed]) -> list[Logits]:
    """Run the new tokens of several sequences together: logits [tokens, vocab_size] of each, one row behind each."""
    lengths = [len(feed.token_ids) for feed in feeds]
    return np.split(advance_together(model, feeds).numpy(), np.cumsum(lengths)[:-1])


def advance_together(model: Runner, feeds: Sequence[Feed]) -> paddle.Tensor:
    """The same with the rows of all sequences in one float32 [N, vocab_size], where the model is."""
    ids = np.concatenate([np.asarray(feed.token_ids, np.int64) for feed in feeds])
    positions = np.concatenate([feed.position + np.arange(len(feed.token_ids), dtype=np.int64) for feed in feeds])
    inputs = ModelInputs(
        input_ids=paddle.to_tensor(ids),
        position_ids=paddle.to_tensor(np.broadcast_to(positions, (3, len(ids))).copy()),
        lengths=[len(feed.token_ids) for feed in feeds],
    )
    return model(inputs, [feed.cache for feed in feeds])


def prompt_inputs(
    config: ModelConfig, prompt: Prompt, features: paddle.Tensor | None, *, last_only: bool = True, skip: int = 0
) -> ModelInputs:
    """What the model reads of a prompt.

    last_only: logits of the last token alone, which is all that decoding needs. skip: tokens at its start that a cache
    holds; `features` then end with those of the vision tokens behind them, and may have more in front.
    """
    ids = prompt.input_ids[skip:]
    rows = None
    if features is not None:
        rows = merge_index(ids, config)
        vision = rows >= len(ids)
        rows[vision] += features.shape[0] - np.count_nonzero(vision)
    return ModelInputs(
        input_ids=paddle.to_tensor(ids),
        position_ids=paddle.to_tensor(np.ascontiguousarray(prompt.position_ids[:, skip:])),
        lengths=[len(ids)],
        features=features,
        merge_index=None if rows is None else paddle.to_tensor(rows),
        logits_index=paddle.to_tensor(np.asarray([len(ids) - 1])) if last_only else None,
    )


def encode_vision(model: Runner, prompt: Prompt) -> paddle.Tensor | None:
    """Features of all pictures and clips, [tokens, hidden_size]."""
    return encode_visions(model, prompt.visions, FeatureCache(0))[0]


def encode_visions(model: Runner, visions: Sequence[Vision], cache: FeatureCache) -> tuple[paddle.Tensor | None, int]:
    """Features of these pictures and clips, [tokens, hidden_size], and how many of them were not in the cache."""
    found = [cache.get(vision, lambda vision: _encode(model, vision)) for vision in visions]
    features = [tensor for tensor, _ in found]
    new = sum(not hit for _, hit in found)
    if not features:
        return None, 0
    return features[0] if len(features) == 1 else paddle.concat(features, axis=0), new


def _encode(model: Runner, vision: Vision) -> paddle.Tensor:
    """One picture, or a long clip in groups of slices.

    Attention does not cross them, so the result is the same and the peak of memory is that of one group.
    """
    slices, height, width = vision.grid_thw
    features = []
    for first in range(0, slices, slices_at_once(vision)):
        count = min(slices_at_once(vision), slices - first)
        rows = slice(first * height * width, (first + count) * height * width)
        features.append(model.features(vision.patches[rows], [(count, height, width)]))
    return features[0] if len(features) == 1 else paddle.concat(features, axis=0)


def slices_at_once(vision: Vision) -> int:
    """Temporal slices of a clip that are encoded together."""
    _, height, width = vision.grid_thw
    return max(1, PATCHES_AT_ONCE // (height * width))


def visions_behind(config: ModelConfig, prompt: Prompt, tokens: int) -> list[Vision]:
    """Pictures and clips that have tokens behind the first `tokens` of the prompt."""
    starts = prompt.vision_starts(config)
    vision_config = config.vision_config
    return [v for v, start in zip(prompt.visions, starts, strict=True) if start + v.tokens(vision_config) > tokens]


def _wait() -> None:
    """Let a GPU finish, so that the time of a stage is its own."""
    if paddle.device.get_device().startswith("gpu"):  # a GPU build may well run on the CPU
        paddle.device.synchronize()
