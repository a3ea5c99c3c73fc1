"""A machine of a given size, and what the program says as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

GIB = 1024**3


def free(monkeypatch: pytest.MonkeyPatch, gib: float, size: float | None = None) -> None:
    """A machine with this much memory."""
    monkeypatch.setattr("qvl.machine.free_memory", lambda: int(gib * GIB))
    monkeypatch.setattr("qvl.machine.memory_size", lambda: int((size or gib) * GIB))


def as_json(result: tuple[int, str, str]) -> tuple[int, dict[str, Any]]:
    code, out, err = result
    assert err == "" and out.count("\n") == 1
    return code, json.loads(out)
