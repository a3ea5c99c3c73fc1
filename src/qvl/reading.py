"""The processor of a checkpoint under a profile: what inference and training both read conversations with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvl.errors import CheckpointError
from qvl.model.config import ModelConfig
from qvl.processing.image import ImageOptions
from qvl.processing.processor import Processor
from qvl.processing.template import Layout
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoOptions
from qvl.profile import Profile

_OLD, _NEW = "preprocessor_config.json", "processor_config.json"


def load_processor(folder: Path, config: ModelConfig, profile: Profile) -> Processor:
    """Read the tokenizer and preprocessor files; limits of the profile win over the checkpoint's.

    Raises CheckpointError naming the missing or damaged file, or a size the model does not have.
    """
    path, preprocessor = _preprocessor(folder)
    try:
        image_options = ImageOptions.from_preprocessor_config(
            preprocessor,
            min_pixels=profile.min_pixels,
            max_pixels=profile.max_pixels,
            raw_pixels=profile.raw_pixels,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    vision = config.vision_config
    sizes = (
        ("patch_size", image_options.patch_size, vision.patch_size),
        ("merge_size", image_options.merge_size, vision.spatial_merge_size),
        ("temporal_patch_size", image_options.temporal_patch_size, vision.temporal_patch_size),
    )
    for name, given, needed in sizes:
        if given != needed:
            raise CheckpointError(f"{path}: {name} is {given}, the model in config.json has {needed}")
    return Processor(
        config=config,
        tokenizer=Tokenizer.from_folder(folder),
        image_options=image_options,
        video_options=VideoOptions(**asdict(profile.video)),
        layout=Layout(profile.template, profile.system, profile.add_vision_id),
    )


def _preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The picture settings: a file of their own, or a section of the one that transformers 5 writes."""
    path = folder / _OLD if (folder / _OLD).is_file() or not (folder / _NEW).is_file() else folder / _NEW
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["image_processor"] if path.name == _NEW else data
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {_OLD} is missing") from None
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as a preprocessor's settings ({error!r})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: a JSON object was expected")
    return path, found
