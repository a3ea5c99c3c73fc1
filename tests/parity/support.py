"""Running a golden case through the public door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvl.messages import Message
from qvl.messages_json import parse_messages
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling
from tests.golden import MEDIA
from tests.golden.cases import NEW_TOKENS, Case

# What the references were made with: exactly so many tokens, the likeliest each time.
GREEDY = Sampling(max_new_tokens=NEW_TOKENS, min_new_tokens=0, temperature=0.0)


def engine_for(folder: Path, case: Case) -> Engine:
    return Engine.load(Profile(model=str(folder), device="cpu", add_vision_id=case.add_vision_id))


def messages_of(case: Case) -> tuple[Message, ...]:
    return parse_messages(_with_paths(case.messages), case.name)


def _with_paths(value: Any) -> Any:
    """Media of the cases are named by file; put their folder in front."""
    if isinstance(value, dict):
        return {key: _media(item) if key in ("image", "video") else _with_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_paths(item) for item in value]
    return value


def _media(source: str | list[str]) -> str | list[str]:
    return [str(MEDIA / name) for name in source] if isinstance(source, list) else str(MEDIA / source)
