"""What an engine runs prompts on: layers in this process, or workers that have a part of them each (`split/`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qvl.model.adapter import apply_adapter
from qvl.model.config import ModelConfig
from qvl.model.device import Placement
from qvl.model.quantization import Quantization
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.weights import Progress
from qvl.profile import Profile
from qvl.runtime import memory
from qvl.runtime.cache import KVCache
from qvl.runtime.decode import Runner, SequenceCache
from qvl.runtime.loading import load


class Body(Protocol):
    """device: where tensors of this process are, as Paddle names it."""

    device: str

    @property
    def runner(self) -> Runner:
        """What takes a prompt. To be had when weights are loaded."""
        ...

    def load(self, folder: Path, profile: Profile, on_progress: Progress | None) -> None:
        """Read the weights. Raises CheckpointError, DeviceError."""
        ...

    def cache(self, capacity: int, dtype: str) -> SequenceCache:
        """An empty one for so many tokens."""
        ...

    def free_memory(self) -> int:
        """Bytes that are free where the model, or each part of it, lies."""
        ...

    def peak_memory(self) -> int:
        """The most bytes taken so far: of a GPU, the fullest of several; on a CPU of all processes."""
        ...


class Whole:
    """The model in this process."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        quantization: Quantization | None = None,
        adapters: memory.Adapters = (),
        model: Qwen2VL | None = None,
    ) -> None:
        """model: one that is loaded already."""
        self.config, self.placement = config, placement
        self.quantization, self.adapters = quantization, adapters
        self.device = placement.device
        self._model = model

    @property
    def runner(self) -> Qwen2VL:
        assert self._model is not None
        return self._model

    def load(self, folder: Path, profile: Profile, on_progress: Progress | None) -> None:
        model = load(folder, self.config, profile, self.placement, self.quantization, on_progress)
        for request, adapter in self.adapters:
            apply_adapter(model, adapter, request.scale)
        self._model = model

    def cache(self, capacity: int, dtype: str) -> KVCache:
        return KVCache(self.config, capacity, dtype)

    def free_memory(self) -> int:
        return memory.available_bytes()

    def peak_memory(self) -> int:
        return memory.peak_bytes()
