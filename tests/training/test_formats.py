"""Each form of a sample to messages, and each kind of broken sample to its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qvl.messages import Image, Message, Text, Video
from qvl.training.formats import DataError, parse_sample

ROOT = Path("/data")
REPLY = {"role": "assistant", "content": "A dog."}


def parse(record: object) -> tuple[Message, ...]:
    return parse_sample(record, ROOT, "set.json: sample 3")


def refusal(record: object) -> str:
    with pytest.raises(DataError) as caught:
        parse(record)
    text = str(caught.value)
    assert text.startswith("set.json: sample 3: ")
    assert "\n" not in text
    return text.removeprefix("set.json: sample 3: ")


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def test_messages_with_images_and_videos() -> None:
    record = {
        "id": 7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("Here: <image>and <video>.\nWhat?"),
            REPLY,
            user("<image>And this?"),
            REPLY,
        ],
        "images": ["a.png", {"path": "/b.png", "max_pixels": 50_000}],
        "videos": [{"video": "clip.mp4", "fps": 1.0}],
        "audios": [],
    }
    system, first, _, second, reply = parse(record)
    assert system == Message.of("system", "Be brief.")
    clip = Video("/data/clip.mp4", fps=1.0)
    assert first == Message.of("user", "Here: ", Image("/data/a.png"), "and ", clip, ".\nWhat?")
    assert second == Message.of("user", Image("/b.png", max_pixels=50_000), "And this?")
    assert reply == Message.of("assistant", "A dog.")


def test_openai_parts() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
        {"type": "text", "text": "A literal <image> tag?"},
        {"type": "video", "video": ["1.png", "2.png"]},
    ]
    first, reply = parse(
        {"messages": [user(content), {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}
    )
    frames = Video(("/data/1.png", "/data/2.png"))
    assert first == Message.of("user", Image("https://host/a.png"), "A literal <image> tag?", frames)
    assert reply == Message.of("assistant", "A")


def test_places_among_parts_take_the_media_of_the_record() -> None:
    content = [{"type": "image", "max_pixels": 9000, "text": None}, {"type": "text", "text": "and <image>?"}]
    first, _ = parse({"messages": [user(content), REPLY], "images": ["a.png", "b.png"]})
    assert first == Message.of("user", Image("/data/a.png", max_pixels=9000), "and ", Image("/data/b.png"), "?")


@pytest.mark.parametrize("media", [{"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}])
def test_llava_conversations(media: dict[str, Any]) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    system, first, reply = parse({"id": "1", **media, "conversations": turns, "system": "Be brief."})
    assert system == Message.of("system", "Be brief.")
    assert first == Message.of("user", Image("/data/a.png"), "\nWhat?")
    assert reply == Message.of("assistant", "A dog.")
    clip = {"video": "c.mp4", "conversations": [{"from": "human", "value": "<video>?"}, turns[1]]}
    assert parse(clip)[0] == Message.of("user", Video("/data/c.mp4"), "?")


def test_swift_media_without_tags_come_first() -> None:
    record = {"messages": [user("What?"), REPLY], "images": ["a.png", {"bytes": "QUJD", "path": None}]}
    assert parse(record)[0] == Message.of("user", Image("/data/a.png"), Image("data:;base64,QUJD"), "What?")
    parts = {"messages": [user([{"type": "text", "text": "What?"}]), REPLY], "videos": "c.mp4"}
    assert parse(parts)[0] == Message.of("user", Video("/data/c.mp4"), "What?")


def test_swift_query_and_response() -> None:
    record = {
        "system": "Be brief.",
        "history": [["<image>Who?", "Ann."]],
        "query": "And?",
        "response": "Bob.",
        "images": ["a.png"],
    }
    expected = [
        Message.of("system", "Be brief."),
        Message.of("user", Image("/data/a.png"), "Who?"),
        Message.of("assistant", "Ann."),
        Message.of("user", "And?"),
        Message.of("assistant", "Bob."),
    ]
    assert list(parse(record)) == expected


def test_text_only_and_turns_that_are_not_learnt() -> None:
    turns = [user("1?"), REPLY | {"loss": False}, user("2?", loss=False), REPLY | {"weight": 1}]
    assert [message.loss for message in parse({"messages": turns})] == [True, False, False, True]
    assert parse({"messages": [user("1?"), REPLY], "images": None})[0].parts == (Text("1?"),)


@pytest.mark.parametrize(
    "source", ["http://host/a.png", "data:image/png;base64,AA", "/x/a.png", "~/a.png", "file:///a"]
)
def test_media_that_are_not_relative(source: str) -> None:
    assert parse({"messages": [user("<image>"), REPLY], "images": [source]})[0].parts == (Image(source),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["x"], "an object was expected, not a list"),
        ({"text": "x", "label": 1}, "a form that is not known (keys: text, label); known are messages with images"),
        ({"messages": []}, "messages has to be a list of turns, not an empty list"),
        ({"messages": ["x"]}, "message 0: an object was expected, not text"),
        ({"messages": [{"role": "user"}]}, "message 0: role and content are needed"),
        ({"messages": [user("x")]}, "no reply of the assistant, so there is nothing to learn"),
        ({"messages": [user("x"), REPLY | {"content": " "}]}, "the assistant's reply is empty"),
        ({"messages": [user("x"), REPLY | {"content": ""}]}, "the assistant's reply is empty"),
        ({"messages": [user("x"), REPLY | {"loss": False}]}, "every reply has loss false"),
        ({"messages": [user("x"), REPLY | {"loss": "no"}]}, "message 1: loss is 'no'; expected true or false"),
        ({"messages": [user("x"), REPLY | {"los": False}]}, "message 1: 'los' is not supported, did you mean 'loss'?"),
        ({"messages": [user("x"), REPLY | {"loss_scale": 0.5}]}, "message 1: 'loss_scale' is not supported"),
        ({"messages": [user("x", loss=True), REPLY]}, "message 0: loss is true, but only replies of the assistant"),
        ({"messages": [user("x"), REPLY, user("y")]}, "the last message is the user's; a sample ends with"),
        ({"messages": [REPLY]}, "message 0 is the assistant's, with nothing before it to answer"),
        ({"messages": [user("x"), {"role": "system", "content": "y"}, REPLY]}, "message 1 is a system one"),
        (
            {"messages": [{"role": "users", "content": "x"}, REPLY]},
            "message 0: unknown role 'users', did you mean 'user'?",
        ),
        (
            {"conversations": [{"from": "robot", "value": "x"}]},
            "message 0: unknown role 'robot'; expected human, gpt or system",
        ),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "message 0: unknown role ['human']; expected human"),
        ({"messages": [user("<image>"), REPLY]}, "1 <image> in the text, but 0 images"),
        ({"messages": [user("<image>"), REPLY], "images": ["a", "b"]}, "1 <image> in the text, but 2 images"),
        ({"messages": [user("<video><video>"), REPLY], "videos": ["a"]}, "2 <video> in the text, but 1 video"),
        ({"conversations": [{"from": "human", "value": "x"}], "image": "a"}, "0 <image> in the text, but 1 image"),
        ({"messages": [user("<image>"), REPLY], "images": [3]}, "images 0: a path, a URL or a data: URI was expected"),
        ({"messages": [user("<image>"), REPLY], "images": [{"src": "a"}]}, "images 0: the key 'image', 'path', 'url'"),
        ({"messages": [user("x"), REPLY], "images": ["a"], "image": "a"}, "image and images both name media"),
        (
            {"messages": [user("<image>"), REPLY], "images": [{"path": "a", "max_pixel": 3}]},
            "message 0, part 0: unknown key 'max_pixel', did you mean 'max_pixels'?",
        ),
        ({"messages": [user(3), REPLY]}, "message 0: content must be text or a list of parts, not a number"),
        ({"messages": [user("x"), REPLY], "audios": ["a.wav"]}, "'audios' is not supported"),
        ({"query": "x"}, "there is no response to learn"),
        ({"query": "x", "response": "y", "history": ["z"]}, "history has to be a list of [query, response]"),
        ({"query": "x", "response": ""}, "the assistant's reply is empty"),
    ],
)
def test_broken_samples(record: object, message: str) -> None:
    assert refusal(record).startswith(message)
