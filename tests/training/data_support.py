"""What the tests of the data have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvl.model.config import ModelConfig
from qvl.processing.processor import Processor
from qvl.processing.tokenizer import Tokenizer


def processor_of(folder: Path, **options: Any) -> Processor:
    """The processor of a checkpoint with the limits of the published ones. NumPy only, no engine."""
    return Processor(ModelConfig.from_folder(folder), Tokenizer.from_folder(folder), **options)
