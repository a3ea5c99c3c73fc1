"""What an engine has in the place of a model that is split: the same calls, answered by workers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import paddle

from qvl.errors import QvlError
from qvl.model.config import ModelConfig
from qvl.model.device import Placement
from qvl.model.part import Part
from qvl.model.qwen2_vl import ModelInputs
from qvl.model.weights import Progress
from qvl.profile import Profile
from qvl.runtime import memory
from qvl.runtime.cache import cache_bytes
from qvl.runtime.split import calls
from qvl.runtime.split.crew import Crew


class SplitCache:
    """Stands for a cache of which each worker holds its heads. `KVCache` says what the methods mean."""

    def __init__(self, owner: SplitModel, number: int, capacity: int, dtype: str) -> None:
        self._owner, self._number, self.dtype, self.capacity = owner, number, dtype, capacity
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def __del__(self) -> None:
        self._owner.drop(self._number)

    @property
    def untouched(self) -> int:
        """Of one worker: it is measured against what is free for each of them."""
        owner = self._owner
        if owner.placement.device != "cpu":
            return 0
        return cache_bytes(part_config(owner.config, owner.size), self.capacity - self._filled, self.dtype)

    @property
    def state(self) -> calls.CacheState:
        return calls.CacheState(self._number, self.capacity, self.dtype, self._filled)

    def check_room(self, tokens: int) -> None:
        """Raise QvlError when so many more do not fit: said by a worker, it would be the end of all of them."""
        if self._filled + tokens > self.capacity:
            raise QvlError(f"the cache has room for {self.capacity} tokens, {self._filled + tokens} were given")

    def grow(self, tokens: int) -> None:
        """Count so many more tokens as stored, by all workers."""
        self._filled += tokens

    def truncate(self, tokens: int) -> None:
        if not 0 <= tokens <= self._filled:
            raise ValueError(f"the cache holds {self._filled} tokens and cannot keep {tokens}")
        self._filled = tokens

    def reserve(self, capacity: int) -> None:
        self.capacity = max(self.capacity, capacity)

    def fill(self, tokens: int, dtype: str) -> None:
        self.check_room(tokens)
        self._owner.fill(self.state, tokens, dtype)
        self.grow(tokens)


class SplitModel:
    """The language model in equal parts on several devices; the vision tower is whole on each.

    Tensors that come and go here are on the CPU, so that the engine's process takes no memory of a GPU.
    """

    device = "cpu"

    def __init__(
        self, config: ModelConfig, placement: Placement, devices: Sequence[str], adapters: memory.Adapters = ()
    ) -> None:
        self.adapters = adapters
        self.config, self.placement, self.size = config, placement, len(devices)
        self._crew = Crew(devices)
        self._numbers = count()
        self._dropped: list[int] = []

    @property
    def runner(self) -> SplitModel:
        """Itself: see `Body`."""
        return self

    def load(self, folder: Path, profile: Profile, on_progress: Progress | None) -> None:
        """Have every worker read its part. Raises CheckpointError and its like as a WorkerError."""
        layout = None if profile.weight_layout == "auto" else profile.weight_layout
        adapters = tuple((str(adapter.folder), request.scale) for request, adapter in self.adapters)
        placement = self.placement
        self._crew.ask(
            calls.Load(str(folder), self.config, placement.dtype, placement.attention, layout, adapters), on_progress
        )

    def free_memory(self) -> int:
        """Bytes that are free on the device that has least; on a CPU, which all share, the part of each."""
        dropped, self._dropped = self._dropped, []
        free: int = min(self._crew.ask(calls.FreeMemory(dropped)))
        return free // self.size if self.placement.device == "cpu" else free

    def peak_memory(self) -> int:
        """As of `Body`."""
        peaks: list[int] = self._crew.ask(calls.PeakMemory())
        return max(peaks) if self.placement.device != "cpu" else sum(peaks) + memory.peak_bytes()

    def cache(self, capacity: int, dtype: str) -> SplitCache:
        """An empty one. Workers set memory aside for it at the first call."""
        return SplitCache(self, next(self._numbers), capacity, dtype)

    def drop(self, number: int) -> None:
        """Have workers forget a cache, with the next call."""
        self._dropped.append(number)

    def fill(self, cache: calls.CacheState, tokens: int, dtype: str) -> None:
        """Have workers fill a cache with noise."""
        self._crew.ask(calls.Fill(cache, tokens, dtype))

    def features(self, patches: npt.NDArray[np.float32], grids: Sequence[tuple[int, int, int]]) -> paddle.Tensor:
        """As of `Qwen2VL`, on the CPU."""
        return paddle.to_tensor(self._crew.ask(calls.Encode(patches, tuple(grids)))[0])

    def __call__(self, inputs: ModelInputs, caches: Sequence[SplitCache] | None = None) -> paddle.Tensor:
        """As of `Qwen2VL`, on the CPU. Caches count the new tokens when all workers have them."""
        if caches is not None:
            for length, cache in zip(inputs.lengths, caches, strict=True):
                cache.check_room(length)
        named = ("input_ids", "position_ids", "features", "merge_index", "logits_index")
        tensors = {name: getattr(inputs, name) for name in named}
        arrays = {name: None if tensor is None else tensor.numpy() for name, tensor in tensors.items()}
        states = None if caches is None else [cache.state for cache in caches]
        dropped, self._dropped = self._dropped, []
        logits, *_ = self._crew.ask(calls.Forward(arrays, tuple(inputs.lengths), states, dropped))
        if caches is not None:
            for length, cache in zip(inputs.lengths, caches, strict=True):
                cache.grow(length)
        return paddle.to_tensor(logits)

    def close(self) -> None:
        """End the workers; without it they end with this object."""
        self._crew.close()


def part_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shape that the caches of each part have."""
    return Part(0, size).share(config)
