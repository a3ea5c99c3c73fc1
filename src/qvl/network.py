"""Whether the network may be used. Below all layers, since pictures and models may both come from it."""

from __future__ import annotations

import os

_OFF = ("", "0", "false", "no", "off")


def is_offline() -> bool:
    """Whether `QVL_OFFLINE` asks that nothing be fetched."""
    return os.environ.get("QVL_OFFLINE", "").strip().lower() not in _OFF
