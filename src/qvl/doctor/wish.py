"""What `qvl doctor` is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qvl.profile import Profile


@dataclass(frozen=True)
class Wish:
    """What is asked for. profile: None: nothing in particular. device, dtype: as a profile has them."""

    profile: Profile | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        profile = self.profile
        return {
            "profile": profile.name if profile else None,
            "model": profile.model if profile else None,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
        }
