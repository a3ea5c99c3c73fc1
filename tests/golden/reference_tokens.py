"""Ids that transformers' fast Qwen2 tokenizer gives to lines that tend to break tokenizers.

Imported by make_reference only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import Qwen2TokenizerFast

from tests.golden import load_lines


def token_reference(small: Path, real: Path | None) -> dict[str, np.ndarray]:
    """Concatenated ids and lengths for the small vocabulary, and for the real one when its folder is given."""
    arrays = _encode(Qwen2TokenizerFast.from_pretrained(small), "small")
    if real is None:
        raise SystemExit("--real-vocabulary is needed to write tokens.npz")
    return arrays | _encode(Qwen2TokenizerFast.from_pretrained(real), "real")


def _encode(tokenizer: Any, name: str) -> dict[str, np.ndarray]:
    # As text a user typed: what looks like a special token is encoded letter by letter.
    ids = [tokenizer(line, split_special_tokens=True, add_special_tokens=False)["input_ids"] for line in load_lines()]
    return {
        f"{name}_ids": np.array([token for line in ids for token in line], dtype=np.int32),
        f"{name}_lengths": np.array([len(line) for line in ids], dtype=np.int32),
    }
