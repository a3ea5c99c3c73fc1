"""The pages: what they link to is there, and no key is left out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qvl.messages import Image, Video
from qvl.profile import Generation, MemoryNeed, Profile, VideoLimits
from qvl.profile_training import LoraOptions, TrainingOptions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in (markdown or html for markdown, html in LINK.findall(text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link) or link.startswith("#"):
            continue
        assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}"


def test_links_are_seen() -> None:
    assert LINK.findall('[a](b.md#c) <img src="d.png">') == [("b.md#c", ""), ("", "d.png")]


@pytest.mark.parametrize(
    ("page", "records"),
    [
        ("profiles.md", (Profile, VideoLimits, Generation, MemoryNeed)),
        ("finetune.md", (TrainingOptions, LoraOptions)),
        ("messages.md", (Image, Video)),
    ],
)
def test_every_key_is_explained(page: str, records: tuple[type, ...]) -> None:
    """In a row of a table. `source` is what the key of a part is called within: "image" or "video"."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    keys = {key.name for record in records for key in dataclasses.fields(record)}
    if page == "messages.md":
        keys.remove("source")
    assert not {key for key in keys if f"`{key}`" not in rows and f"`{key}:" not in rows}


@pytest.mark.slow
def test_the_code_for_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "The picture shows" in said and "examples/missing.png: no such file" in said and "blue square (" in said
