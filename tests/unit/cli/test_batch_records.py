"""The lines of a batch, and what one record may say."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qvl.cli.batch_each import each_record
from qvl.cli.batch_input import FileRecords, Records, StreamRecords
from qvl.cli.batch_record import KEYS, Defaults, read_record
from qvl.cli.options import MediaOptions
from qvl.errors import MediaError, UsageError
from qvl.messages import Image, Message, Text, Video


def file_of(folder: Path, *lines: str) -> FileRecords:
    path = folder / "in.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return FileRecords(path, "in.jsonl")


def ids(records: Records) -> list[object]:
    return [item.ticket.id for item in records]


def errors(records: Records) -> dict[object, str]:
    return {item.ticket.line: str(item.data) for item in records if isinstance(item.data, UsageError)}


LINES = [
    '\ufeff{"prompt": "a"}',
    "",
    '{"id": "x", "prompt": "b"}',
    "{bad",
    '{"id": null, "prompt": "c"}',
    "7",
    '[{"role"',
]


def test_ids_are_line_numbers_unless_given_from_a_file_as_from_a_pipe(tmp_path: Path) -> None:
    from_file = file_of(tmp_path, *LINES)
    assert ids(from_file) == [1, "x", 4, 5, 6, 7]
    from_pipe = list(StreamRecords(io.BytesIO("\n".join(LINES).encode()), "standard input"))
    assert [item.ticket for item in from_file] == [item.ticket for item in from_pipe] == from_file.tickets
    found = errors(from_file)
    assert list(found) == [4, 6, 7] and found[4].startswith("not valid JSON (column 2:")
    assert found[6] == "an object was expected, with messages or a prompt"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": NaN}', "NaN is not a number in JSON"),
        ('{"n": ' + "1" * 5000 + "}", "not valid JSON (Exceeds the limit"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"id": 1.5, "prompt": "a"}', "id is 1.5; expected text or a whole number"),
        ('{"id": true, "prompt": "a"}', "id is true"),
        ('"text"', "an object was expected"),
    ],
)
def test_a_line_that_cannot_be_used_says_why_and_goes_by_its_number(tmp_path: Path, line: str, words: str) -> None:
    records = file_of(tmp_path, line, '{"prompt": "fine"}')
    assert words in errors(records)[1]
    assert ids(records) == [1, 2]


def test_bytes_that_are_no_text_are_an_error_of_their_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert errors(FileRecords(tmp_path / "in.jsonl", "in.jsonl")) == {2: "not UTF-8 (byte 13)"}


def test_an_id_that_two_lines_have_ends_the_run_and_names_both(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='lines 1 and 3 have the same id "x"'):
        file_of(tmp_path, '{"id": "x"}', '{"id": "y"}', '{"id": "x"}')
    with pytest.raises(UsageError, match="lines 2 and 3 have the same id 2; a record without an id"):
        file_of(tmp_path, '{"id": "x"}', '{"prompt": "a"}', '{"id": 2}')
    assert ids(file_of(tmp_path, '{"id": 2}', '{"id": "2"}')) == [2, "2"]


def test_a_bad_line_never_takes_the_id_of_a_good_one(tmp_path: Path) -> None:
    records = file_of(tmp_path, '{"id": 0}', "{bad", '{"id": 2}')
    assert ids(records) == [0, None, 2]
    assert [item.ticket.key for item in records] == ["0", "line 2", "2"]


def test_an_id_that_comes_twice_through_a_pipe_is_an_error_of_the_second() -> None:
    records = StreamRecords(io.BytesIO(b'{"id": "x"}\n{"id": "x"}\n{"id": "y"}'), "standard input")
    items = list(records)
    assert [item.ticket.id for item in items] == ["x", None, "y"] and records.tickets is None
    assert [str(item.data) for item in items if isinstance(item.data, UsageError)] == ['the id "x" is that of line 1']


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    records = file_of(tmp_path, '{"prompt": "a"}', '{"prompt": "b"}\n')
    path = tmp_path / "in.jsonl"
    path.write_bytes(path.read_bytes() + b'{"prompt": "later"}\n')
    assert ids(records) == [1, 2]  # what is added waits for another run
    path.write_text('{"prompt": "a"}\n{"prompt": "B"}\n')
    with pytest.raises(UsageError, match="line 2 was changed during the run"):
        ids(records)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match="was cut short"):
        ids(records)


def read(data: dict[str, Any], **defaults: Any) -> Any:
    return read_record(data, Defaults(**defaults))


def test_a_record_is_a_conversation_with_paths_beside_its_file() -> None:
    content = [{"type": "image", "image": "a.png", "max_pixels": 784}, {"type": "text", "text": "What?"}]
    question = read({"messages": [{"role": "user", "content": content}], "temperature": 0.5}, root=Path("data"))
    assert question.messages == (Message.of("user", Image("data/a.png", max_pixels=784), "What?"),)
    assert question.sampling == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"prompt": "What?"}, (Text("What?"),)),
        ({"image": "a.png", "prompt": "What?"}, (Image("a.png"), Text("What?"))),
        (
            {"images": ["a.png", {"image": "b.png", "max_pixels": 784}], "prompt": "{} or {}?"},
            (Image("a.png"), Text(" or "), Image("b.png", max_pixels=784), Text("?")),
        ),
        ({"video": ["1.png", "2.png"], "prompt": "What?"}, (Video(("1.png", "2.png")), Text("What?"))),
        ({"videos": ["c.mp4"], "images": "a.png", "prompt": "?"}, (Image("a.png"), Video("c.mp4"), Text("?"))),
        (
            {"images": ["https://x/y.png", "/abs.png"], "prompt": "?"},
            (Image("https://x/y.png"), Image("/abs.png"), Text("?")),
        ),
    ],
)
def test_a_record_may_be_a_prompt_and_its_media(data: dict[str, Any], parts: tuple[Any, ...]) -> None:
    assert read(data, root=Path()).messages == (Message("user", parts),)


def test_flags_hold_for_records_that_do_not_say_otherwise() -> None:
    defaults = {"media": MediaOptions(max_pixels=784, fps=1.0), "prompt": "Describe.", "system": "Be brief."}
    question = read({"image": "a.png"}, **defaults)
    assert question.messages == (
        Message.of("system", "Be brief."),
        Message.of("user", Image("a.png", max_pixels=784), "Describe."),
    )
    own = read({"image": {"image": "a.png", "max_pixels": 1568}, "prompt": "Why?", "system": "Be long."}, **defaults)
    assert own.messages == (
        Message.of("system", "Be long."),
        Message.of("user", Image("a.png", max_pixels=1568), "Why?"),
    )


def test_sampling_stands_beside_the_question_or_on_its_own() -> None:
    flat = read({"prompt": "a", "max_new_tokens": 5, "stop": "x", "seed": None}).sampling
    nested = read({"prompt": "a", "sampling": {"max_new_tokens": 5, "stop": ["x"]}}).sampling
    assert flat == nested == {"max_new_tokens": 5, "stop": ("x",)}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "there is no question"),
        ({"promt": "a"}, "unknown key 'promt', did you mean 'prompt'?"),
        ({"prompt": "a", "max_tokens": 3}, "unknown key 'max_tokens', did you mean 'max_new_tokens'?"),
        ({"prompt": "a", "sampling": {"temprature": 1}}, "unknown key 'temprature', did you mean 'temperature'?"),
        ({"prompt": "a", "seed": 1, "sampling": {"seed": 2}}, "seed is given twice"),
        ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'; expected a number"),
        ({"prompt": "a", "max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a whole number"),
        ({"prompt": "a", "sampling": 3}, "sampling has to be an object"),
        ({"prompt": 3}, "prompt has to be text"),
        ({"prompt": ""}, "the content is empty"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"prompt": "a", "messages": []}, "leave out 'prompt'"),
        ({"messages": []}, "there are no messages"),
        (
            {"messages": [{"role": "usr", "content": "a"}]},
            "messages: message 0: unknown role 'usr', did you mean 'user'?",
        ),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "system is given twice"),
        ({"prompt": "{} {}", "image": "a.png"}, "2 places {} for 1 picture"),
        ({"prompt": "a", "images": [3]}, "images: message 0, part 0: image must be a path"),
        ({"prompt": "a", "images": [{"type": "text", "text": "b"}]}, "neither a picture nor a clip"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        read(data)
    assert words in str(error.value)


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_a_folder_is_taken_whole_and_in_an_order_people_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["photos/2.jpg", "photos/10.JPG", "photos/sub/1.png", "photos/clip.mp4"]
    pictures(tmp_path, *names, "photos/notes.txt", "photos/.hidden.jpg", "photos/.git/3.jpg", "other.png")
    records = each_record(MediaOptions(media=["photos", "other.png"]))
    assert ids(records) == [*names[:2], "photos/clip.mp4", "photos/sub/1.png", "other.png"]
    data = [dict(item.data) for item in records if not isinstance(item.data, UsageError)]
    assert data[2] == {"videos": ["photos/clip.mp4"]} and data[3] == {"images": ["photos/sub/1.png"]}
    assert ids(each_record(MediaOptions(media=["photos/*.[jJ]*"]))) == names[:2]
    assert ids(each_record(MediaOptions(media=["photos/**/*.png"]))) == ["photos/sub/1.png"]
    assert ids(each_record(MediaOptions(media=["http://x/?a", "http://x/?b"], video=["photos/sub"]))) == [
        "http://x/?a",
        "http://x/?b",
        "photos/sub",
    ]


def test_folders_that_are_links_are_gone_into_but_not_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, "elsewhere/1.jpg", "elsewhere/deep/2.jpg", "photos/3.jpg", "photos/sub/4.jpg")
    for name, target in (
        ("photos/link", "../elsewhere"),
        ("photos/sub/up", ".."),
        ("photos/self", "self"),
        ("photos/.hidden", "../elsewhere"),
        ("elsewhere/deep/back", "../../elsewhere"),
    ):
        (tmp_path / name).symlink_to(target)
    found = ["photos/3.jpg", "photos/link/1.jpg", "photos/link/deep/2.jpg", "photos/sub/4.jpg"]
    assert ids(each_record(MediaOptions(media=["photos"]))) == found
    monkeypatch.chdir("photos")
    from_within = sorted(str(name) for name in ids(each_record(MediaOptions(media=["."]))))
    assert from_within == sorted(name.removeprefix("photos/") for name in found)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, "photos/1.jpg", "photos/private/2.jpg")
    real = os.scandir

    def scandir(path: Any) -> Any:  # root may read everything
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"^--each: photos/private: cannot be read \(Permission denied\)$"):
        each_record(MediaOptions(media=["photos"]))


def test_what_is_left_out_of_a_folder_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, "a/1.jpg", "a/1.txt", "a/1.json", "a/1.xmp", "a/Thumbs.db", "a/README")
    each_record(MediaOptions(media=["a"]))
    assert capsys.readouterr().err == ""
    pictures(tmp_path, "a/2.HEIC")
    each_record(MediaOptions(media=["a"]))
    assert capsys.readouterr().err == "qvl: 1 file with another ending (.heic) is left out\n"
    pictures(tmp_path, "a/b/3.heic", "c/4.vob", "c/5.mp4", "c/.6.heic")
    each_record(MediaOptions(media=["a", "c"]))
    assert capsys.readouterr().err == "qvl: 3 files with other endings (.heic, .vob) are left out\n"
    each_record(MediaOptions(media=["a", "c"]), quiet=True)
    assert capsys.readouterr().err == ""
    pictures(tmp_path, "d/7.heic", "d/8.heic")
    with pytest.raises(
        UsageError, match=r"d holds no pictures or clips; 2 files with other endings \(.heic\) are left"
    ):
        each_record(MediaOptions(media=["d"]))


def test_names_that_differ_by_noughts_have_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a/IMG_001.jpg", "a/IMG_01.jpg", "a/IMG_1.jpg", "a/IMG_2.jpg"]
    pictures(tmp_path, *names)
    for order in (names, names[::-1]):
        monkeypatch.setattr("glob.glob", lambda *_, order=order, **__: list(order))
        assert ids(each_record(MediaOptions(media=["a/*.jpg"]))) == names
    assert ids(each_record(MediaOptions(media=["a"]))) == names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "name files, folders or patterns"),
        ({"media": ["empty"]}, "empty holds no pictures or clips"),
        ({"media": ["*.webp"]}, "no file matches"),
        ({"media": ["a.png", "a.png"]}, "a.png was given twice, as number 1 and 2"),
        ({"media": ["-"]}, "not standard input"),
        ({"video": ["missing.mp4"]}, "no such file or folder"),
    ],
)
def test_a_list_that_cannot_be_meant_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    pictures(tmp_path, "a.png")
    with pytest.raises((UsageError, MediaError), match=words):
        each_record(MediaOptions(**options))


def test_a_digest_is_of_the_content_and_not_of_the_id_or_the_spacing(tmp_path: Path) -> None:
    first = file_of(tmp_path, '{"id": 1, "prompt": "a", "seed": 1}', json.dumps({"id": 2, "prompt": "b"})).tickets
    second = file_of(tmp_path, '{"seed":1,"prompt":"a"}', '{"id": 2, "prompt": "B"}').tickets
    assert first is not None and second is not None
    assert first[0].digest == second[0].digest and first[1].digest != second[1].digest


def test_the_page_about_batches_names_every_key_and_its_examples_are_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "batch.md").read_text(encoding="utf-8")
    questions = page.split("```json\n")[1].split("```")[0].splitlines()
    assert [len(read(json.loads(line)).messages) for line in questions] == [1, 1, 2]
    table = page.split("## Answers")[0]
    assert not [key for key in KEYS if f"`{key}`" not in table]
