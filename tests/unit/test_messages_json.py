"""Conversations as JSON: both common forms are read, every mistake is placed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from qvl.errors import UsageError
from qvl.messages import Image, ImageSource, Message, Text, Video
from qvl.messages_json import as_messages, interleave, messages_from_text, parse_messages, to_json


def one(part: dict[str, Any]) -> Any:
    (message,) = parse_messages([{"role": "user", "content": [part]}], "test")
    return message.parts[0]


def test_a_conversation_of_plain_text() -> None:
    data = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = (Message.of("system", "Be brief."), Message.of("user", "Hello"))
    assert parse_messages(data, "test") == expected
    assert parse_messages({"model": "any", "messages": data}, "test") == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "a"}, Text("a")),
        ({"text": "a"}, Text("a")),
        ({"type": "image", "image": "a.png"}, Image("a.png")),
        ({"image": "a.png", "max_pixels": 100352}, Image("a.png", max_pixels=100352)),
        ({"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}}, Image("https://x/a.png")),
        ({"type": "image_url", "image_url": "data:image/png;base64,AA"}, Image("data:image/png;base64,AA")),
        ({"type": "image", "image": "a.png", "min_pixels": None}, Image("a.png")),
        (
            {"type": "image", "image": "a.png", "resized_height": 280, "resized_width": 420},
            Image("a.png", resized_height=280, resized_width=420),
        ),
        ({"video": "a.mp4", "fps": 1}, Video("a.mp4", fps=1)),
        (
            {"type": "video", "video": ["1.png", "2.png"], "nframes": 2},
            Video(("1.png", "2.png"), nframes=2),
        ),
        (
            {"type": "video_url", "video_url": {"url": "https://x/a.mp4"}, "video_start": 0, "video_end": 2.5},
            Video("https://x/a.mp4", video_start=0, video_end=2.5),
        ),
    ],
)
def test_parts(part: dict[str, Any], expected: object) -> None:
    assert one(part) == expected


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "imge", "imge": "a.png"}, "unknown type 'imge', did you mean 'image'?"),
        ({"type": 5}, "unknown type 5"),
        ({"file": "a.png"}, "a type was expected"),
        ({"image": "a.png", "text": "b"}, "a type was expected"),
        ({"type": "image", "image": "a.png", "max_pixel": 5}, "unknown key 'max_pixel', did you mean 'max_pixels'?"),
        ({"type": "image", "image": "a.png", "fps": 1}, "unknown key 'fps'"),
        ({"type": "image", "url": "a.png"}, "needs the key 'image'"),
        ({"type": "image", "image": 5}, "image must be a path, a URL or a data: URI, not a number"),
        ({"type": "image", "image": "a.png", "max_pixels": "5"}, "max_pixels is '5'; expected a whole number above 0"),
        ({"type": "image", "image": "a.png", "max_pixels": True}, "max_pixels is True"),
        ({"type": "image", "image": "a.png", "max_pixels": 0}, "max_pixels is 0"),
        ({"type": "image", "image": "a.png", "max_pixels": 10**5000}, "max_pixels is a number of 16610 bits"),
        ({"type": "video", "video": "a.mp4", "fps": float("nan")}, "fps is nan"),
        ({"type": "video", "video": "a.mp4", "nframes": 2.5}, "nframes is 2.5; expected a whole number"),
        ({"type": "video", "video": "a.mp4", "fps": float("inf")}, "fps is inf"),
        ({"type": "video", "video": "a.mp4", "video_start": -1}, "expected a number of at least 0"),
        ({"type": "video", "video": "a.mp4", "fps": 1, "nframes": 4}, "fps and nframes exclude each other"),
        ({"type": "video", "video": []}, "a list of frames, not nothing"),
        ({"type": "video", "video": ["a.png", 5]}, "frame 1 must be a path"),
        ({"type": "text", "text": ["a"]}, "text must be text, not a list"),
    ],
)
def test_a_wrong_part_is_placed(part: dict[str, Any], words: str) -> None:
    data = [{"role": "system", "content": "a"}, {"role": "user", "content": ["hello", part]}]
    with pytest.raises(UsageError) as caught:
        parse_messages(data, "chat.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("chat.json: message 1, part 1")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "a list of messages was expected, not text"),
        ({"message": []}, "a list of messages was expected, not an object"),
        ([], "there are no messages"),
        (["a"], "message 0: an object with role and content was expected"),
        ([{"role": "usr", "content": "a"}], "unknown role 'usr', did you mean 'user'?"),
        ([{"role": ["user"], "content": "a"}], "unknown role ['user']; expected system, user, assistant"),
        ([{"content": "a"}], "unknown role None"),
        ([{"role": "user"}], "content must be text or a list of parts, not nothing"),
        ([{"role": "user", "contents": "a"}], "unknown key 'contents', did you mean 'content'?"),
    ],
)
def test_a_wrong_message_is_placed(data: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_messages(data, "chat.json")
    assert words in str(caught.value)


def test_bad_json_says_line_and_column() -> None:
    with pytest.raises(UsageError, match=r"chat\.json: not valid JSON \(line 2, column 1"):
        messages_from_text("[\n", "chat.json")
    with pytest.raises(UsageError, match=r"chat\.json"):
        messages_from_text("[" * 100_000, "chat.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1" * 5000, "not valid JSON"),
        ("NaN", "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number"),
        (r'"half \ud83d a pair"', "lone surrogate (U+D83D)"),
        (r'[{"type": "text", "text": "\udc00"}]', "lone surrogate (U+DC00)"),
        (r'["\ud800"]', "lone surrogate (U+D800)"),
    ],
)
def test_json_that_no_text_or_number_comes_of_is_one_line(content: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        messages_from_text(f'[{{"role": "user", "content": {content}}}]', "chat.json")
    assert str(caught.value).startswith("chat.json: ") and words in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_whole_surrogate_pair_is_a_character() -> None:
    (message,) = messages_from_text(r'[{"role": "user", "content": "\ud83d\ude00"}]', "chat.json")
    assert message.parts == (Text("\U0001f600"),)


def test_what_is_written_is_read_back() -> None:
    messages = (
        Message.of("system", "Be brief."),
        Message.of("user", Image(Path("a.png"), max_pixels=5), "and", Video(("1.png", "2.png"), fps=1.5)),
        Message.of("assistant", "Yes."),
    )
    data = json.loads(json.dumps(to_json(messages)))
    expected = Message.of("user", Image("a.png", max_pixels=5), "and", Video(("1.png", "2.png"), fps=1.5))
    assert parse_messages(data, "test") == (messages[0], expected, messages[2])


def test_a_picture_in_memory_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="by path, URL or data: URI"):
        to_json([Message.of("user", Image(b"abc"))])


A, B = Image("a.png"), Video("b.mp4")


@pytest.mark.parametrize(
    ("prompt", "media", "expected"),
    [
        ("What?", (A, B), (A, B, Text("What?"))),
        ("Is {} in {}?", (A, B), (Text("Is "), A, Text(" in "), B, Text("?"))),
        ("{}{}", (A, B), (A, B)),
        ("", (A,), (A,)),
        ('Fill in {"a": 1} and { }', (A,), (A, Text('Fill in {"a": 1} and { }'))),
        ("What is {}?", (), (Text("What is {}?"),)),
    ],
)
def test_interleaving(prompt: str, media: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert interleave(prompt, media) == expected


def test_places_and_media_have_to_be_as_many() -> None:
    with pytest.raises(UsageError, match=r"3 places \{\} for 2 pictures and clips"):
        interleave("{} {} {}", (A, B))


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize("image", [PIXELS, PILImage.fromarray(PIXELS), Path("a.png"), b"bytes"], ids=type)
def test_from_python_a_picture_may_be_the_thing_itself(image: ImageSource) -> None:
    content = [{"type": "image", "image": image}, {"type": "video", "video": [image, image]}]
    (message,) = as_messages([{"role": "user", "content": content}])
    picture, clip = message.parts
    assert isinstance(picture, Image) and picture.source is image
    assert isinstance(clip, Video) and isinstance(clip.source, tuple) and clip.source[1] is image


@pytest.mark.parametrize(("image", "kind"), [(3, "a number"), ({1}, "a set"), ("", "nothing"), ([], "nothing")])
def test_what_is_no_picture_is_called_what_it_is(image: object, kind: str) -> None:
    with pytest.raises(UsageError, match=f"image must be a path, a URL or a data: URI, not {kind}"):
        as_messages([{"role": "user", "content": [{"type": "image", "image": image}]}])


def test_no_messages_are_no_conversation() -> None:
    with pytest.raises(UsageError, match="there are no messages"):
        as_messages([])


def test_a_record_has_a_role_that_models_know() -> None:
    with pytest.raises(UsageError, match=r"unknown role 'System'.* 'system'"):
        Message.of("System", "Be brief.")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected system, user, assistant"):
        Message("speaker of the house", ())  # type: ignore[arg-type]
