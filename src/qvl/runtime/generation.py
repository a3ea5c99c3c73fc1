"""What the checkpoint, the profile and the user say about sampling, in that order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qvl.errors import CheckpointError, UsageError, suggest
from qvl.runtime.records import Sampling
from qvl.runtime.sampler import check

_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_KNOWN = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class GenerationConfig:
    """`generation_config.json`: ids that end an answer, and sampling as the checkpoint's authors set it."""

    eos_token_ids: frozenset[int]
    sampling: Mapping[str, Any]

    @staticmethod
    def from_folder(folder: Path, eos_fallback: int | None) -> GenerationConfig:
        """Read the file, or take `eos_fallback` when there is none. Raises CheckpointError when it is damaged."""
        path = folder / "generation_config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            eos = data.get("eos_token_id", eos_fallback)
            ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
            sampling = {name: data[name] for name in _FROM_CHECKPOINT if data.get(name) is not None}
            if not data.get("do_sample", False):
                sampling["temperature"] = 0.0
            return GenerationConfig(frozenset(int(i) for i in ids), sampling)
        except FileNotFoundError:
            return GenerationConfig(frozenset(() if eos_fallback is None else (eos_fallback,)), {})
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None


def resolve(checkpoint: GenerationConfig, profile: Mapping[str, Any], overrides: Mapping[str, Any]) -> Sampling:
    """One `Sampling` out of three sources; None in any of them means that it says nothing.

    The published checkpoints ask for top_k 1, which makes any temperature greedy. Whoever asks for a temperature above
    0 wants it to matter, so the checkpoint's top_k and top_p are then left out.
    """
    unknown = [name for name in overrides if name not in _KNOWN]
    if unknown:
        raise UsageError(f"unknown sampling setting {unknown[0]!r}{suggest(unknown[0], _KNOWN)}")
    asked = {**_given(profile), **_given(overrides)}
    base = dict(checkpoint.sampling)
    if asked.get("temperature"):
        base = {name: value for name, value in base.items() if name not in ("top_k", "top_p")}
    elif {"top_k", "top_p", "min_p"} & asked.keys() and "temperature" not in asked and not base.get("temperature"):
        base["temperature"] = 1.0  # filters only mean something when a token is drawn
    merged = {**base, **asked}
    if "stop" in merged:
        merged["stop"] = tuple(merged["stop"])
    sampling = Sampling(**merged)
    check(sampling)
    return sampling


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and name in _KNOWN}
