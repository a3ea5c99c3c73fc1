"""A sample of a data set as the model sees it. Loads no weights and imports no Paddle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qvl.errors import QvlError, UsageError
from qvl.hub.locate import locate
from qvl.model.config import ModelConfig
from qvl.profile import Profile
from qvl.reading import load_processor
from qvl.training.dataset import load_dataset
from qvl.training.formats import DataError
from qvl.training.show import show_sample

if TYPE_CHECKING:
    from rich.text import Text


def preview(profile: Profile, data: Path, number: int) -> Text:
    """Sample `number`, counted from 0. Raises UsageError beyond the last, DataError naming a broken one."""
    folder = locate(profile.model)
    config = ModelConfig.from_folder(folder)
    processor = load_processor(folder, config, profile)
    dataset = load_dataset(data, seed=profile.training.seed)
    if number >= len(dataset):
        raise UsageError(f"--show-sample {number}: the data has {len(dataset)} samples, counted from 0")
    sample = dataset[number]
    try:
        example = processor.example(sample.messages)
    except QvlError as error:
        raise DataError(f"{sample.where}: {error}") from None
    return show_sample(example, processor.tokenizer, config)
