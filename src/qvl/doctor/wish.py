"""What `qvl doctor` is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvl.profile import Profile


@dataclass(frozen=True)
class Wish:
    """What is asked for. profile: None: nothing in particular; the rest is as a profile has it."""

    profile: Profile | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    quantize: str = "auto"
    cache_dtype: str = "auto"

    def to_json(self) -> dict[str, Any]:
        profile = self.profile
        return {
            "profile": profile.name if profile else None,
            "model": profile.model if profile else None,
            "device": self.device,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "cache_dtype": self.cache_dtype,
            "threads": self.threads,
        }
