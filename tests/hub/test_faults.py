"""A hub that misbehaves: always the right files in the end or one clear error, nothing half kept, nothing twice."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.answers import Answer, Asked, cut, refuse, send, stall, whole
from tests.hub.conftest import BIG, INDEX, Run, is_model, noise, nothing_kept, one_error
from tests.hub.server import Handler, Hub

pytestmark = pytest.mark.slow  # a server that makes one wait


def times(count: int, answer: Callable[[Asked], Answer], name: str = BIG) -> Callable[[Asked], Answer | None]:
    """Misbehave for the first `count` requests for a file, then no more."""
    left = [count]

    def misbehave(asked: Asked) -> Answer | None:
        if asked.name != name or not left[0]:
            return None
        left[0] -= 1
        return answer(asked)

    return misbehave


def test_fifty_cuts_at_random_bytes_cost_nothing(hub: Hub, run: Run, store: Path) -> None:
    places = random.Random(5)
    hub.misbehave = times(50, lambda _: cut(places.randrange(1, 9000)))
    code, _, err = run("2b", "--source", "hf")
    assert code == 0, err
    assert is_model(store / hub.model, hub)
    assert len([asked for asked in hub.asked if asked.name == BIG]) == 51
    assert hub.sent(BIG) == len(hub.files[BIG]), "no byte was sent twice"


def test_cuts_before_the_first_byte_and_at_the_last_one(hub: Hub, run: Run, store: Path) -> None:
    cuts = iter([0, len(hub.files[BIG]) - 1, 0])
    hub.misbehave = times(3, lambda _: cut(next(cuts)))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub) and hub.sent(BIG) == len(hub.files[BIG])


def test_every_file_is_cut_once_with_all_of_them_on_their_way(hub: Hub, run: Run, store: Path) -> None:
    seen: set[str] = set()

    def misbehave(asked: Asked) -> Answer | None:
        first = asked.name not in seen
        seen.add(asked.name)
        return cut(len(hub.files[asked.name]) // 3) if first else None

    hub.misbehave = misbehave
    assert run("2b", "--jobs", "8")[0] == 0
    assert is_model(store / hub.model, hub)


def test_a_stalled_connection_is_given_up_and_taken_up_again(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVL_DOWNLOAD_TIMEOUT", "1")
    hub.misbehave = times(2, lambda _: stall(50_001, 40))
    start = time.monotonic()
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)
    assert hub.sent(BIG) == len(hub.files[BIG]) and time.monotonic() - start < 30


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    hub: Hub, run: Run, store: Path, code: int, form: str
) -> None:
    asked_at: list[float] = []

    def busy(_: Asked) -> Answer:
        asked_at.append(time.time())
        wait = "2" if form == "seconds" else email.utils.formatdate(time.time() + 3, usegmt=True)
        return refuse(code, {"Retry-After": wait})

    start = time.monotonic()
    hub.misbehave = times(1, busy)
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub) and time.monotonic() - start >= 1.9


def test_the_list_too_is_asked_for_again_when_the_server_is_busy(hub: Hub, run: Run, store: Path) -> None:
    answers = iter([(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"}), (502, {})])
    hub.status = lambda path: next(answers, None) if path.startswith("/api/models") else None
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_a_server_that_asks_for_too_long_is_passed_over(hub: Hub, run: Run, store: Path) -> None:
    hub.status = lambda path: (429, {"Retry-After": "86400"}) if path.startswith("/api/models") else None
    code, _, err = run("2b")
    assert code == 0 and "left alone for 1440 minutes" in err
    assert is_model(store / hub.model, hub)


@pytest.mark.parametrize("wrong", [b"", b"too short", noise(300_001, 1)])
def test_a_wrong_length_is_tried_again(hub: Hub, run: Run, store: Path, wrong: bytes) -> None:
    hub.misbehave = times(2, lambda _: whole(wrong))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_a_length_that_stays_wrong_is_an_error(hub: Hub, run: Run, store: Path) -> None:
    hub.misbehave = times(100, lambda _: whole(b"too short"))
    code, out, err = run("2b", "--source", "hf")
    assert one_error(code, out, err) and f"{BIG}: it has 9 bytes there, not the 300,000" in err
    assert nothing_kept(store, hub)


def test_more_than_the_stated_length_without_a_frame_is_not_taken(hub: Hub, run: Run, store: Path) -> None:
    longer = hub.files[BIG] + b"and more"
    hub.misbehave = times(2, lambda _: whole(longer, framed=False))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_wrong_bytes_are_fetched_again_once(hub: Hub, run: Run, store: Path) -> None:
    wrong = hub.files[BIG][:-1] + b"?"
    hub.misbehave = times(1, lambda _: whole(wrong))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


@pytest.mark.parametrize("source", ["hf", "modelscope", "bos", "aistudio"])
@pytest.mark.parametrize("name", ["config.json", BIG])
def test_bytes_that_stay_wrong_are_an_error(hub: Hub, run: Run, store: Path, source: str, name: str) -> None:
    wrong = bytes(len(hub.files[name]))
    hub.misbehave = times(100, lambda _: whole(wrong), name)
    code, out, err = run("2b", "--source", source)
    assert one_error(code, out, err) and f"{name} arrived 2 times with other bytes than the source states" in err
    assert nothing_kept(store, hub)


def test_wrong_bytes_after_a_cut_are_noticed(hub: Hub, run: Run, store: Path) -> None:
    """The second half comes from another file: the whole is fetched again."""
    other = noise(len(hub.files[BIG]), 77)
    answers = iter([cut(100_000), lambda handler, _data, asked: send(handler, other, asked)])
    hub.misbehave = times(2, lambda _: next(answers))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_a_part_that_was_not_asked_for_is_not_taken(hub: Hub, run: Run, store: Path) -> None:
    def elsewhere(handler: Handler, data: bytes, _: Asked) -> None:
        handler.plain(206, {"Content-Range": f"bytes 5-{len(data) - 1}/{len(data)}"}, data[5:])

    answers = iter([cut(1000), elsewhere])
    hub.misbehave = times(2, lambda _: next(answers))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_a_server_that_ignores_ranges_is_no_obstacle(hub: Hub, run: Run, store: Path) -> None:
    """Each time a little more arrives; what is there already is passed over and not thrown away."""
    places = iter([100_000, 50_000, 200_000, 299_999, None])
    hub.misbehave = times(5, lambda _: whole(cut_at=next(places)))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "its token is missing or wrong"),
        (403, "needs a token of somebody"),
        (404, "does not have it"),
        (410, "410"),
    ],
)
def test_a_refusal_is_final_and_clear(hub: Hub, run: Run, store: Path, code: int, words: str) -> None:
    hub.status = lambda path: (code, {}) if path.startswith("/api/models") else None
    exit_code, out, err = run("2b", "--source", "hf")
    assert one_error(exit_code, out, err) and words in err and str(code) in err
    assert nothing_kept(store, hub) and len(hub.seen) == 1


def test_one_file_that_is_not_there_ends_it(hub: Hub, run: Run, store: Path) -> None:
    hub.misbehave = times(100, lambda _: refuse(404), "tokenizer_config.json")
    code, out, err = run("2b", "--source", "hf")
    assert one_error(code, out, err) and "tokenizer_config.json" in err
    assert nothing_kept(store, hub)


def test_an_address_that_has_run_out_is_asked_for_anew(hub: Hub, run: Run, store: Path) -> None:
    """A content server says 403 when the signature is too old; the hub gives a new one."""
    hub.misbehave = times(2, lambda _: refuse(403))
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_nobody_there_is_one_error_with_every_source_in_it(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in hub.environment():
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("QVL_DOWNLOAD_TRIES", "2")
    code, out, err = run("2b")
    assert one_error(code, out, err)
    assert all(name in err for name in ("Hugging Face:", "ModelScope:", "PaddleNLP's BOS:", "AI Studio:"))
    assert "takes no connections" in err and nothing_kept(store, hub)


def test_a_page_in_place_of_a_list_is_not_taken_for_one(hub: Hub, run: Run, store: Path) -> None:
    hub.misbehave = times(100, lambda _: whole(b"<html>log in first</html>"), "config.json")
    code, out, err = run("2b", "--source", "hf")
    assert one_error(code, out, err) and nothing_kept(store, hub)


def test_what_was_whole_is_not_fetched_again_after_a_failure(hub: Hub, run: Run, store: Path) -> None:
    hub.misbehave = lambda asked: (
        cut(1000)
        if asked.name == BIG and "Range" not in asked.headers
        else (refuse(404) if asked.name == BIG else None)
    )
    assert run("2b", "--source", "hf", "--jobs", "1")[0] == 1
    had = hub.names()
    assert INDEX in had
    hub.asked.clear()
    hub.misbehave = lambda _: None
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)
    assert hub.names() & had == {BIG} and hub.sent(BIG) == len(hub.files[BIG]) - 1000


def test_a_damaged_leftover_is_found_out(hub: Hub, run: Run, store: Path) -> None:
    """As after a power cut: the file has its length, and zeros in it."""
    hub.misbehave = lambda asked: (
        cut(200_000)
        if asked.name == BIG and "Range" not in asked.headers
        else (refuse(404) if asked.name == BIG else None)
    )
    assert run("2b", "--source", "hf")[0] == 1
    parts = list((store / hub.model).parent.glob(".*.partial/*.part"))
    assert parts
    for part in parts:
        part.write_bytes(bytes(part.stat().st_size))
    hub.misbehave = lambda _: None
    assert run("2b", "--source", "hf")[0] == 0
    assert is_model(store / hub.model, hub)


def test_with_another_source_left_a_dead_one_is_not_waited_for(
    hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    hub.status = lambda path: (asked.append(path), (503, {}))[1] if path.startswith("/api/models") else None
    assert run("2b")[0] == 0
    assert is_model(store / hub.model, hub) and len(asked) == 2
    monkeypatch.setenv("QVL_DOWNLOAD_TRIES", "4")
    asked.clear()
    assert run("7b", "--source", "hf")[0] == 1
    assert len(asked) == 4, "a source that is the only one is given more time"


def test_a_long_wait_is_told(hub: Hub, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests = []
    monkeypatch.setattr("qvl.hub.web.Web.rest", lambda _self, seconds: rests.append(seconds))
    hub.misbehave = times(1, lambda _: refuse(429, {"Retry-After": "77"}))
    code, _, err = run("2b", "--source", "hf")
    assert code == 0 and 77 in rests and is_model(store / hub.model, hub)
    assert f"{BIG}: localhost:" in err and "answered 429 (too many requests); trying again in 77 s" in err
