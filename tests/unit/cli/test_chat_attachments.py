"""Pictures and clips in a typed line: where they are seen, and where not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from qvl.cli.chat.attachments import as_text, read_line, short_name, words
from qvl.errors import MediaError, QvlError
from qvl.messages import Image, Message, Part, Text, Video
from qvl.processing.image import load_image
from tests.golden import MEDIA


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat.png", "my cat.png", "it's.png", "a(b).png", "sub/dog.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        PILImage.new("RGB", (20, 10), "white").save(name)
    Path("clip.mp4").write_bytes((MEDIA / "clip.mp4").read_bytes())
    return tmp_path


def shape(parts: tuple[Part, ...]) -> list[str]:
    """Text as it is, media in angle brackets."""
    return [part.text if isinstance(part, Text) else f"<{short_name(part)}>" for part in parts]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("What is it?", ["What is it?"]),
        ("cat.png What is it?", ["<cat.png>", "What is it?"]),
        ("What is in cat.png?", ["What is in ", "<cat.png>", "?"]),
        ("Compare cat.png with sub/dog.jpg.", ["Compare ", "<cat.png>", " with ", "<dog.jpg>", "."]),
        ("(cat.png) and (sub/dog.jpg)", ["(", "<cat.png>", ") and (", "<dog.jpg>", ")"]),
        ("'my cat.png' what?", ["<my cat.png>", "what?"]),
        ('"my cat.png", what?', ["<my cat.png>", ", what?"]),
        ("my\\ cat.png what?", ["<my cat.png>", "what?"]),
        ("my cat.png", ["<my cat.png>"]),
        ("it\\'s.png it's", ["<it's.png>", "it's"]),
        ("a\\(b\\).png !", ["<a(b).png>", "!"]),
        ("a(b).png !", ["<a(b).png>", "!"]),
        ("~/cat.png here", ["<cat.png>", "here"]),
        ("clip.mp4 what happens", ["<clip.mp4>", "what happens"]),
        ("cat.png sub/dog.jpg", ["<cat.png>", "<dog.jpg>"]),
        ("cat.png\nfirst\n\nsecond ", ["<cat.png>", "first\n\nsecond"]),
        ("it's 'quoted' and \"so\" on", ["it's 'quoted' and \"so\" on"]),
        ("what's cat's", ["what's cat's"]),
        ("a file such as notes.txt or a/b.txt", ["a file such as notes.txt or a/b.txt"]),
        ("https://example.org/page and a://b", ["https://example.org/page and a://b"]),
        ("[#1 x] stays as it is", ["[#1 x] stays as it is"]),
    ],
)
def test_a_path_in_a_line_is_attached_where_it_stands(line: str, expected: list[str]) -> None:
    assert shape(read_line(line).parts) == expected


def test_a_dropped_file_url_is_attached(folder: Path) -> None:
    url = (folder / "my cat.png").as_uri()
    assert "%20" in url
    reading = read_line(f"{url} What?")
    assert shape(reading.parts) == ["<my cat.png>", "What?"]


def test_a_data_uri_is_attached() -> None:
    line = "data:image/gif;base64,R0lGODlhAQABAAAAACw= what"
    assert shape(read_line(line).parts) == ["<embedded image/gif>", "what"]


def test_a_bare_name_that_is_no_file_is_text_and_told() -> None:
    reading = read_line("call it dgo.png or cat.png")
    assert shape(reading.parts) == ["call it dgo.png or", "<cat.png>"]
    assert reading.not_found == ("dgo.png",)


@pytest.mark.parametrize("line", ["sub/nope.png what", "~/nope.png", "'sub/no such.png' what", "see (sub/nope.jpg)."])
def test_a_path_that_leads_nowhere_is_an_error(line: str) -> None:
    with pytest.raises(MediaError, match=r"no.*\.(png|jpg): no such file"):
        read_line(line)


def test_a_picture_is_kept_as_it_was_when_it_was_attached(folder: Path) -> None:
    part = read_line("cat.png what").parts[0]
    assert isinstance(part, Image)
    PILImage.new("RGB", (99, 99), "black").save("cat.png")
    assert load_image(part.source).size == (20, 10)
    Path("cat.png").write_bytes(b"no picture")
    changed = read_line("cat.png what").parts[0]
    assert isinstance(changed, Image)
    with pytest.raises(QvlError, match=str(folder / "cat.png")):  # messages call it by its path
        load_image(changed.source)


def test_a_clip_stays_on_disk_by_its_full_path(folder: Path) -> None:
    part = read_line("clip.mp4 what").parts[0]
    assert part == Video(str(folder / "clip.mp4"))


@pytest.mark.parametrize(
    "line", ["What is in cat.png?", "cat.png what", "cat.png sub/dog.jpg differ how", "Look: cat.png"]
)
def test_a_question_can_be_edited_and_keeps_its_media(line: str) -> None:
    parts = read_line(line).parts
    text, media = as_text(parts)
    assert read_line(text, media).parts == parts
    moved = read_line(f"Now then: {text.replace('what', 'why')}", media)
    assert [part for part in moved.parts if not isinstance(part, Text)] == list(media)
    assert read_line("without it", media).media == ()


def test_a_mark_that_nobody_made_is_text() -> None:
    _, media = as_text(read_line("cat.png what").parts)
    assert shape(read_line("[#2 x] [#1] [#0]", media).parts) == ["[#2 x] ", "<cat.png>", " [#0]"]


def test_arguments_may_be_quoted_escaped_or_one_name_with_spaces() -> None:
    assert words("a.png 'b c.png' d\\ e.png") == ["a.png", "b c.png", "d e.png"]
    assert words("my cat.png") == ["my cat.png"]
    assert words("no such file.png") == ["no", "such", "file.png"]
    assert words("  ") == []


def test_parts_of_a_message_are_values() -> None:
    one, two = read_line("cat.png a"), read_line("cat.png a")
    assert hash(one.parts[0]) == hash(two.parts[0]) and Message("user", one.parts) == Message("user", two.parts)


@pytest.mark.parametrize("line", ["IMG_1.HEIC what", "'my photo.heic' what", "look: (IMG_1.HEIC)"])
def test_a_picture_that_cannot_be_read_is_not_passed_over(folder: Path, line: str) -> None:
    """As an iPhone makes them: a model that never got it would make its answer up."""
    for name in ("IMG_1.HEIC", "my photo.heic"):
        (folder / name).write_bytes(b"....ftypheic")
    with pytest.raises(MediaError, match=r"(?i)\.heic: \.heic files are not read; convert it to JPEG or PNG first"):
        read_line(line)
    assert shape(read_line("what is a.heic").parts) == ["what is a.heic"]


@pytest.mark.parametrize(("name", "kind"), [("a.jfif", Image), ("a.avif", Image), ("a.3gp", Video), ("a.mpg", Video)])
def test_files_of_less_common_endings_are_attached(folder: Path, name: str, kind: type[Part]) -> None:
    (folder / name).write_bytes((folder / "cat.png").read_bytes())
    part, text = read_line(f"{name} what").parts
    assert isinstance(part, kind) and text == Text("what")
