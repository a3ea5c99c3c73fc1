"""What the checkpoint, the profile and the user say about sampling, in that order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qvl.errors import CheckpointError, UsageError, suggest
from qvl.runtime.records import Sampling
from qvl.runtime.sampler import TEMPERATURES, check

_FROM_CHECKPOINT = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Asking for one of these asks for a draw.
_DRAWS = ("temperature", "top_p", "top_k", "min_p")
_KNOWN = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class GenerationConfig:
    """`generation_config.json`: ids that end an answer, and sampling as the checkpoint's authors set it."""

    eos_token_ids: frozenset[int]
    sampling: Mapping[str, Any]

    def ending(self, token_id: int) -> GenerationConfig:
        """The same, where one token more ends an answer."""
        return replace(self, eos_token_ids=self.eos_token_ids | {token_id})

    @staticmethod
    def from_folder(folder: Path, eos_fallback: int | Sequence[int] | None) -> GenerationConfig:
        """Read the file; `eos_fallback`, one id or several, is for one that is missing or has none.

        Raises CheckpointError when the file is damaged.
        """
        path = folder / "generation_config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            eos = data.get("eos_token_id")
            sampling = {name: data[name] for name in _FROM_CHECKPOINT if data.get(name) is not None}
            for name, value in sampling.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise TypeError(f"{name} is {value!r}, not a number")
            # Checkpoints also write "greedy" as a draw at a temperature next to nothing.
            if not data.get("do_sample", False) or 0 < sampling.get("temperature", 1.0) < TEMPERATURES[0]:
                sampling["temperature"] = 0.0
            sampling.setdefault("temperature", 1.0)  # what a draw is at where the file does not say
            return GenerationConfig(_ids(eos_fallback if eos is None else eos), sampling)
        except FileNotFoundError:
            return GenerationConfig(_ids(eos_fallback), {})
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None


def resolve(checkpoint: GenerationConfig, profile: Mapping[str, Any], overrides: Mapping[str, Any]) -> Sampling:
    """One `Sampling` out of three sources; None in any of them means that it says nothing.

    The published checkpoints ask for temperature 0.01, top_p 0.001 and top_k 1, each of which alone is greedy. Whoever
    asks for a temperature above 0, a top_p, a top_k or a min_p wants it to matter, so the checkpoint's three are then
    left out, and the temperature is 1 unless it was asked for.

    The checkpoint's max_new_tokens counts when neither profile nor overrides say one. A profile's `Generation` always
    does: its default is 512.
    """
    unknown = [name for name in overrides if name not in _KNOWN]
    if unknown:
        raise UsageError(f"unknown sampling setting {unknown[0]!r}{suggest(unknown[0], _KNOWN)}")
    asked = {**_given(profile), **_given(overrides)}
    base = dict(checkpoint.sampling)
    if asked.get("temperature", 1.0) != 0 and any(name in asked for name in _DRAWS):
        base = {name: value for name, value in base.items() if name not in ("temperature", "top_k", "top_p")}
        base["temperature"] = 1.0
    merged = {**base, **asked}
    if "stop" in merged:
        stop = merged["stop"]
        merged["stop"] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
    sampling = Sampling(**merged)
    check(sampling)
    return sampling


def _ids(eos: int | Sequence[int] | None) -> frozenset[int]:
    if eos is None:
        return frozenset()
    return frozenset(int(i) for i in (eos if isinstance(eos, (list, tuple)) else (eos,)))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and name in _KNOWN}
