"""An answer as JSON, for `--json` and for the lines of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from qvl.processing.prompt import Prompt
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import FinishReason, Stats


class Answered(Protocol):
    """What is known of an answer, however it came about."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def stats(self) -> Stats: ...


def answer_fields(engine: Engine, prompt: Prompt, answer: Answered, boxes: list[dict[str, Any]]) -> dict[str, Any]:
    """The object that `--json` prints; docs/cli.md explains the keys. `stats` is still a record."""
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": len(prompt),
        "image_grid_thw": [vision.grid_thw for vision in prompt.visions if vision.kind == "image"],
        "video_grid_thw": [vision.grid_thw for vision in prompt.visions if vision.kind == "video"],
        "finish_reason": answer.finish_reason,
        "boxes": boxes,
        "stats": answer.stats,
        "model": engine.profile.model,
        "profile": engine.profile.name,
    }
