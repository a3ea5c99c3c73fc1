"""Continuous batching: what nobody foresaw, or too little memory, is an error of one request and stops no other."""

from __future__ import annotations

import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest

from qvl.errors import MediaError, MemoryLimitError, QvlError, UnforeseenError
from qvl.messages import Message
from qvl.profile import Profile
from qvl.runtime import answering
from qvl.runtime.answering import Answering
from qvl.runtime.engine import Engine
from qvl.runtime.records import Finished, Request, Sampling
from tests.unit.test_serve import check, requests

GPU_SHORTAGE = RuntimeError(
    "\n\n----------------------\nError Message Summary:\n----------------------\n"
    "ResourceExhaustedError: \n\nOut of memory error on GPU 0. Cannot allocate 2.0GB memory on GPU 0.\n"
)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu", max_context=600))


def errors(finished: list[Finished]) -> dict[object, QvlError]:
    return {result.key: result.error for result in finished if result.error is not None}


def good(finished: list[Finished]) -> list[Finished]:
    return [result for result in finished if result.error is None]


def test_what_fails_as_it_is_read_stops_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = requests(6), engine.laid_out
    broken = {id(made[1].conversation): MemoryError(), id(made[4].conversation): TypeError("two\nlines")}

    def laid_out(conversation: Any) -> Any:
        if id(conversation) in broken:
            raise broken[id(conversation)]
        return real(conversation)

    monkeypatch.setattr(engine, "laid_out", laid_out)
    finished = list(engine.serve(made, batch_size=3))
    monkeypatch.undo()
    found = errors(finished)
    assert {key: type(error) for key, error in found.items()} == {1: MemoryLimitError, 4: UnforeseenError}
    assert str(found[1]) == "there was not enough memory (MemoryError)" and str(found[4]) == "TypeError: two lines"
    assert isinstance(found[4].__cause__, TypeError) and found[4].__cause__.__traceback__ is not None
    check(engine, [request for request in made if request.key not in found], good(finished))


def test_one_that_runs_out_of_memory_as_it_begins_waits_for_others_to_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is memory for two at a time, and never for the huge one."""
    made = requests(7)
    huge = Request("huge", [Message.of("user", "word " * 400)], Sampling(8))
    begun, tried, ended = weakref.WeakSet[Answering](), 0, 0
    real = engine.begin

    def begin(prompt: Any, sampling: Any) -> Answering:
        nonlocal tried
        tried += 1
        if len(begun) == 2 or len(prompt) > 300:
            raise GPU_SHORTAGE
        begun.add(made := real(prompt, sampling))
        return made

    monkeypatch.setattr(engine, "begin", begin)
    finished = []
    for result in engine.serve([*made[:2], huge, *made[2:]], batch_size=4):
        finished.append(result)
        ended += 1
    monkeypatch.undo()
    found = errors(finished)
    assert set(found) == {"huge"} and isinstance(found["huge"], MemoryLimitError)
    assert "(RuntimeError: ---------------------- Error Message Summary" in str(found["huge"])
    check(engine, made, good(finished))
    assert tried <= 2 * ended, "once, and then not before one of those that left no room has ended"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["laid_out", "begin", "step"])
def test_an_interruption_still_ends_everything(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
) -> None:
    def interrupted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(engine, where, interrupted)
    with pytest.raises(error):
        list(engine.serve(requests(3), batch_size=2))


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_step_for_which_there_is_too_little_memory_is_taken_in_parts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """most: how many tokens go through the model at a time; what a longer step has written to caches does not count."""
    made = [
        Request(request.key, request.conversation, Sampling(12, temperature=1.0, seed=7, speculate="off"))
        for request in requests(5)
    ]
    real, failed = answering.advance_together, 0
    held: dict[int, int] = {}

    def advance(model: Any, feeds: Any) -> Any:
        nonlocal failed
        before = {id(feed.cache): len(feed.cache) for feed in feeds}
        assert before == {key: held.get(key, length) for key, length in before.items()}
        logits = real(model, feeds)
        if len(feeds) > most:
            failed += 1
            held.update(before)
            raise GPU_SHORTAGE
        for key in before:
            held.pop(key, None)
        return logits

    monkeypatch.setattr(answering, "advance_together", advance)
    finished = list(engine.serve(made, batch_size=4))
    monkeypatch.undo()
    assert failed
    if most:
        check(engine, made, finished)
    else:
        assert {type(error) for error in errors(finished).values()} == {MemoryLimitError} and not good(finished)


def test_a_fault_in_one_of_many_that_step_together_is_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Request(request.key, request.conversation, Sampling(10, ignore_eos=True)) for request in requests(5)]
    length = len(engine.prompt(made[2].conversation))  # type: ignore[arg-type]
    real_feed, real_take = Answering.feed, Answering.take

    def feed(self: Answering, rows: int) -> Any:
        if len(self.prompt) == length and len(self.drawn) == 4:
            raise TypeError("nobody thought of this")
        return real_feed(self, rows)

    def take(self: Answering, logits: Any, *drawn: Any) -> None:
        real_take(self, logits, *drawn)
        if len(self.prompt) == length and len(self.drawn) >= 4:
            raise TypeError("nobody thought of this")

    for name, broken in (("feed", feed), ("take", take)):
        monkeypatch.setattr(Answering, name, broken)
        finished = list(engine.serve(made, batch_size=4))
        monkeypatch.undo()
        assert {key: str(error) for key, error in errors(finished).items()} == {2: "TypeError: nobody thought of this"}
        check(engine, [request for request in made if request.key != 2], good(finished))


def test_a_fault_in_drawing_is_that_of_one_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = engine.prompt([Message.of("user", "Hi")])
    going = [engine.begin(prompt, Sampling(5, ignore_eos=True)) for _ in range(3)]
    real = Answering.take

    def take(self: Answering, *given: Any) -> None:
        if self is going[1]:
            raise TypeError("nobody thought of this")
        real(self, *given)

    monkeypatch.setattr(Answering, "take", take)
    engine.step(going)
    assert [len(answer.drawn) for answer in going] == [2, 1, 2]
    assert [type(answer.error) for answer in going] == [type(None), TypeError, type(None)]


def test_a_fault_comes_out_of_a_plain_answer_as_it_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any) -> None:
        raise TypeError("nobody thought of this")

    monkeypatch.setattr(engine, "begin", begin)
    with pytest.raises(TypeError, match="nobody thought"):
        engine.generate([Message.of("user", "Hi")])


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        *(("check_memory", kind) for kind in (TypeError, MemoryError, MediaError)),
        *(("begin", kind) for kind in (TypeError, MemoryError, MediaError)),
        *(("step", kind) for kind in (TypeError, MemoryError)),
    ],
)
def test_what_has_failed_takes_no_memory_from_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str, kind: type[Exception]
) -> None:
    """Though its error is still there, and the lines of code that it went through."""
    made = requests(2)[1:]
    large: list[weakref.ref[Any]] = []
    real_cache, real_laid_out = engine.cache, engine.laid_out

    def cache(capacity: int) -> Any:
        large.append(weakref.ref(cache := real_cache(capacity)))
        return cache

    def laid_out(conversation: Any) -> Any:
        prompt = real_laid_out(conversation)
        large.extend(weakref.ref(vision) for vision in prompt.visions)
        return prompt

    def failing(*given: Any, **_: Any) -> None:
        own = engine.cache(100)
        assert given and own.capacity == 100
        raise kind("it fails")

    monkeypatch.setattr(engine, "cache", cache)
    monkeypatch.setattr(engine, "laid_out", laid_out)
    monkeypatch.setattr(engine, where, failing)
    results = engine.serve(made, batch_size=1)
    result = next(results)
    error = result.error and (result.error.__cause__ or result.error)
    assert isinstance(error, kind) and "failing" in "".join(traceback.format_exception(error))
    assert len(large) >= 2 and [reference() for reference in large] == [None] * len(large)
    results.close()  # type: ignore[attr-defined]
