"""What is to be fitted: the shape of each profile's model, whether it is here or not, and the profile's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvl.errors import QvlError
from qvl.hub.locate import find
from qvl.hub.names import full_name
from qvl.model.config import ModelConfig
from qvl.model.foreign import foreign_of, published_foreign
from qvl.model.quantization import stored_quantization
from qvl.model.shapes import published_config
from qvl.processing.prompt import Vision
from qvl.profile import Profile, list_profiles, load_profile

# The area up to which the published checkpoints take a picture, where a profile sets no limit.
_CHECKPOINT_PIXELS = 12_845_056


@dataclass(frozen=True)
class Subject:
    """A shape and the limits it runs within. profiles: the names of those that have it. parts: it is split into."""

    profiles: tuple[str, ...]
    model: str
    config: ModelConfig
    max_pixels: int | None
    max_context: int | None
    new_tokens: int
    quantize: str = "auto"
    cache_dtype: str = "auto"
    parts: int = 1
    asked: bool = False

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        limit = self.config.max_position_embeddings
        return min(limit, self.max_context or limit)

    @property
    def picture(self) -> Vision:
        """A picture of the largest size, without pixels."""
        vision = self.config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        tokens = max(1, (self.max_pixels or _CHECKPOINT_PIXELS) // side**2)
        grid = (1, vision.spatial_merge_size, tokens * vision.spatial_merge_size)
        patches = np.broadcast_to(np.float32(0), (grid[1] * grid[2], vision.patch_dim))
        return Vision("image", patches, grid, (side, side * tokens))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "config": self.config.to_dict()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Subject:
        config = ModelConfig.from_dict(data["config"])
        return Subject(**{**data, "config": config, "profiles": tuple(data["profiles"])})


def subject_of(profile: Profile, *, asked: bool = False) -> Subject:
    """The subject of one profile. Raises CheckpointError when its model is neither here nor published."""
    # A folder may be called as a published model is for short.
    model = profile.model if Path(profile.model).expanduser().is_dir() else full_name(profile.model)
    return Subject(
        profiles=(profile.name,),
        model=model,
        config=config_of(model),
        max_pixels=profile.max_pixels,
        max_context=profile.max_context,
        new_tokens=profile.generation.max_new_tokens,
        quantize=profile.quantize,
        cache_dtype=profile.cache_dtype,
        parts=len(profile.devices.split(",")) if profile.devices is not None else profile.tensor_parallel,
        asked=asked,
    )


def config_of(model: str) -> ModelConfig:
    """A model's shape: from its folder when it is here, else as published. Raises CheckpointError."""
    folder = find(model)
    if folder is not None:
        return ModelConfig.from_folder(folder)
    known = published_config(model)
    if known is None:
        raise UnknownShapeError(f"{model} is not on this machine, and its shape is not known without it")
    return known


def is_quantised(model: str) -> bool:
    """Whether a model's weights are stored quantised, by its folder or its published name."""
    folder = find(model)
    if folder is None:
        return published_foreign(model) is not None
    return foreign_of(folder) is not None or stored_quantization(folder) is not None


class UnknownShapeError(QvlError):
    """A model that is not here and that nobody published under this name."""


def subjects(asked: Profile | None) -> tuple[list[Subject], list[str]]:
    """Every profile that answers questions, those of one shape together; the one asked for first. And what is amiss."""
    found: dict[Any, Subject] = {}
    remarks: list[str] = []
    for profile in _profiles(asked, remarks):
        try:
            subject = subject_of(profile, asked=profile is asked)
        except QvlError as error:
            if profile is not asked:  # else it is a problem, and said as one
                remarks.append(f"profile {profile.name}: {error}")
            continue
        # What comes quantised takes other memory than its shape says.
        model = subject.model if is_quantised(subject.model) else ""
        alike = dataclasses.replace(subject, profiles=(), model=model, asked=False, config=_shape(subject.config))
        old = found.get(alike)
        if old is None:
            found[alike] = subject
        elif profile.name not in old.profiles:
            found[alike] = dataclasses.replace(old, profiles=(*old.profiles, profile.name))
    return list(found.values()), remarks


def _profiles(asked: Profile | None, remarks: list[str]) -> Iterator[Profile]:
    if asked is not None and asked.command == "infer":
        yield asked
    for info in list_profiles():
        if not info.usable:
            remarks.append(f"profile {info.name} {info.description}")
        elif info.command == "infer":
            yield load_profile(info.name)


def _shape(config: ModelConfig) -> ModelConfig:
    """Without what differs between base and Instruct and takes no memory."""
    return dataclasses.replace(config, bos_token_id=None, eos_token_id=None, torch_dtype="")
