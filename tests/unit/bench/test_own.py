"""qvl's own side: what it times is what the engine does, and what does not fit is left out with the reason."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qvl.bench.own import Own
from qvl.bench.question import write_picture
from qvl.errors import MemoryLimitError
from qvl.messages import Image, Message
from qvl.profile import load_profile
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling


@pytest.fixture
def opened(tiny_checkpoint: Path) -> dict[str, Any]:
    profile = load_profile("demo").revised({"model": str(tiny_checkpoint)}, "test")
    return {"profile": asdict(profile), "adapters": [], "check_memory": True}


@pytest.fixture
def side(opened: dict[str, Any]) -> Own:
    own = Own()
    assert own.hello(None)["ops"]["body"] in ("native", "composed")
    assert own.load(**opened)["seconds"] > 0
    return own


def test_the_answer_is_the_engines_without_template_or_drafts(
    side: Own, opened: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "picture.png")
    write_picture((56, 84), Path(path))
    asked = side.check({"path": path, "text_tokens": 12, "new_tokens": 8}, **opened)
    assert (asked["prompt_tokens"], asked["vision_tokens"]) == (47, 35)
    found = side.question(path, asked["text"], 8)
    engine = Engine.load("demo", model=tiny_checkpoint, settings=["template=none"])
    message = Message.of("user", Image(path), asked["text"])
    answer = engine.generate([message], Sampling(max_new_tokens=8, ignore_eos=True, speculate="off"))
    assert found["token_ids"] == list(answer.token_ids) and found["prompt_tokens"] == 47
    again = side.question(path, asked["text"], 8)
    assert again["vision"] > 0 and again["token_ids"] == found["token_ids"]  # nothing was kept from the first time


def test_each_row_of_a_batch_decodes(side: Own) -> None:
    found = side.decode(context=20, batch=3, new_tokens=5)
    assert found["tokens"] == 3 * 4 and found["seconds"] > 0
    assert side.decode(context=1, batch=1, new_tokens=2)["tokens"] == 1
    peaks = side.memory()
    assert peaks["process"] > 10**7 and peaks["gpu"] is None


def test_what_does_not_fit_is_skipped_with_the_reason(side: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the context holds 32768 tokens" in side.decode(context=40_000, batch=1, new_tokens=2)["skipped"]
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    assert "the caches take 0.0 GiB, 0.0 GiB are free" in side.decode(context=1000, batch=2, new_tokens=2)["skipped"]


def test_a_question_that_does_not_fit_is_refused(
    side: Own, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"path": None, "text_tokens": 9, "new_tokens": 8}
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    with pytest.raises(MemoryLimitError, match="this takes about"):
        side.check(asked, **opened)
    assert side.check(asked, **{**opened, "check_memory": False})["prompt_tokens"] == 9
