"""What a conversation writes and reads: JSON, Markdown, pictures with boxes."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image as PILImage
from talking import Talk

from qvl.messages import Image
from qvl.messages_json import messages_from_text


def test_boxes_are_drawn_on_the_picture_they_are_about(talk: Talk) -> None:
    mark = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(500,900)<|box_end|>"
    talk.say("cat.png Where?")
    talk.say("/boxes none.png")
    assert not Path("none.png").exists() and "no boxes" in talk.view.notes[-1]
    talk.model.says = [mark]
    talk.say("/retry", "/boxes out.png")
    assert talk.view.tables[-1] == [("cat", "20 20 100 90")]
    drawn = PILImage.open("out.png")
    assert drawn.size == (200, 100) and len(drawn.getcolors(1 << 20) or ()) > 2
    assert "out.txt: must end in" in talk.fail("/boxes out.txt")


def test_a_conversation_is_saved_and_loaded_as_it_was(talk: Talk) -> None:
    talk.say("/set max_pixels 50000", "/system Be brief.", "What is in cat.png?", "Two?", "/save talk.json")
    sent = talk.chat.dialogue.messages
    saved = json.loads(Path("talk.json").read_text())
    assert saved[1]["content"][1] == {"type": "image", "image": str(Path("cat.png").resolve()), "max_pixels": 50000}
    other = Talk()
    other.say("/load talk.json")
    assert other.chat.dialogue.messages == sent
    other.say("/save talk.json")  # its own file
    assert json.loads(Path("talk.json").read_text()) == saved


def test_pictures_can_be_embedded_and_are_where_their_file_changed(talk: Talk) -> None:
    talk.say("cat.png dog.png What?", "/save one.json --embed")
    parts = messages_from_text(Path("one.json").read_text(), "")[0].parts
    assert all(str(part.source).startswith("data:image/png;base64,") for part in parts if isinstance(part, Image))
    Path("dog.png").unlink()
    PILImage.new("RGB", (5, 5)).save("cat.png")
    talk.view.notes.clear()
    talk.say("/save two.json")
    assert [note.partition(":")[0] for note in talk.view.notes[:2]] == ["cat.png", "dog.png"]
    assert Path("two.json").read_text() == Path("one.json").read_text()
    talk.say("/load two.json", "/save three.json")
    assert Path("three.json").read_text() == Path("one.json").read_text()


def test_a_conversation_that_ends_with_a_question_waits_for_retry(talk: Talk) -> None:
    Path("open.json").write_text(json.dumps([{"role": "user", "content": "One?"}]))
    talk.say("/load open.json")
    assert talk.turns == [] and "/retry asks it" in talk.view.notes[-1]
    talk.say("/retry")
    assert talk.turns == [("One?", "An answer.")]


def test_a_conversation_whose_picture_is_gone_is_not_loaded(talk: Talk) -> None:
    talk.say("One?")
    content = [{"type": "image", "image": "gone.png"}, {"type": "text", "text": "What?"}]
    Path("gone.json").write_text(json.dumps([{"role": "user", "content": content}]))
    assert "gone.png: no such file" in talk.fail("/load gone.json")
    Path("bad.json").write_text("{")
    assert "not valid JSON" in talk.fail("/load bad.json")


def test_files_that_are_not_ours_are_not_written_over(talk: Talk) -> None:
    Path("notes.json").write_text('{"my": "notes"}')
    Path("notes.md").write_text("notes")
    talk.say("One?")
    assert "is no conversation" in talk.fail("/save notes.json")
    assert "is already there" in talk.fail("/export notes.md")
    assert (Path("notes.json").read_text(), Path("notes.md").read_text()) == ('{"my": "notes"}', "notes")


def test_an_export_reads_as_markdown_with_pictures(talk: Talk) -> None:
    talk.model.says = ["A <|object_ref_start|>cat<|object_ref_end|>."]
    talk.say("/system Be brief.", "What is in cat.png?")
    Path("pages").mkdir()
    talk.say("/export pages/talk.md", "/export pages/talk.md")
    page = Path("pages/talk.md").read_text()
    assert "## System\n\nBe brief." in page and "![cat.png](../cat.png)" in page and "## Answer\n\nA cat." in page
    Path("cat.png").unlink()
    talk.say("/export pages/talk.md")
    assert "![cat.png](talk-1.png)" in Path("pages/talk.md").read_text()
    assert PILImage.open("pages/talk-1.png").size == (200, 100)
    Path("pages/other-1.png").write_bytes(b"mine")
    assert "other-1.png, for a picture of it, is already there" in talk.fail("/export pages/other.md")
    assert Path("pages/other-1.png").read_bytes() == b"mine" and not Path("pages/other.md").exists()
