"""What a run of the program gives."""

from __future__ import annotations

import json
from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def tokens(result: tuple[int, str, str]) -> list[int]:
    code, out, err = result
    assert code == 0, err
    answer: list[int] = json.loads(out)["token_ids"]
    return answer
