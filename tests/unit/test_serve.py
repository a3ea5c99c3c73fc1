"""Continuous batching: what joins, what leaves, and that each request gives what it gives alone."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.errors import ContextLimitError, MediaError, MemoryLimitError, QvlError, UsageError
from qvl.messages import Image, Message
from qvl.profile import Profile
from qvl.runtime import memory
from qvl.runtime.answering import Answering
from qvl.runtime.engine import Engine
from qvl.runtime.records import Finished, Request, Sampling


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu", max_context=600))


def requests(count: int, **sampling: Any) -> list[Request]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        side = int(random.integers(30, 200))
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        parts = [Image(pixels)] if number % 3 else []
        message = Message.of("user", *parts, "word " * int(random.integers(1, 40)))
        settings = Sampling(max_new_tokens=int(random.integers(1, 24)), **sampling)
        made.append(Request(number, [message], settings))
    return made


def check(engine: Engine, made: Sequence[Request], finished: Sequence[Finished]) -> None:
    """Every request is answered once, and as it is alone."""
    by_key = {result.key: result for result in finished}
    assert len(finished) == len(by_key) == len(made)
    for request in made:
        result, alone = by_key[request.key], engine.generate(request.conversation, request.sampling)
        assert result.error is None and result.answer is not None and result.prompt is not None
        assert result.answer.token_ids == alone.token_ids and result.answer.text == alone.text
        assert result.answer.finish_reason == alone.finish_reason
        assert [v.size for v in result.prompt.visions] == [v.size for v in engine.prompt(request.conversation).visions]  # type: ignore[arg-type]


@pytest.mark.parametrize("speculate", ["off", "on"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_requests_of_all_lengths_answer_as_they_do_alone(engine: Engine, batch_size: int, speculate: str) -> None:
    made = requests(13, speculate=speculate)
    made[3] = replace(made[3], sampling=Sampling(20, temperature=1.0, seed=3))
    made[4] = replace(made[4], sampling=Sampling(20, repetition_penalty=1.3, min_new_tokens=4, stop_loops=True))
    check(engine, made, list(engine.serve(made, batch_size=batch_size)))


def test_bad_requests_are_told_apart_and_stop_no_other(engine: Engine) -> None:
    made = requests(8)
    hi = [Message.of("user", "Hi")]
    bad = {
        "file": (Request("file", [Message.of("user", Image("/no/such/file.png"))], Sampling()), MediaError),
        "bytes": (Request("bytes", [Message.of("user", Image(b"not a picture"))], Sampling()), MediaError),
        "role": (Request("role", [{"role": "usr", "content": "Hi"}], Sampling()), UsageError),
        "long": (Request("long", [Message.of("user", "word " * 900)], Sampling()), ContextLimitError),
        "sampling": (Request("sampling", hi, Sampling(temperature=-1.0)), UsageError),
    }
    mixed: list[Request] = []
    for request, extra in zip(made, [*bad.values(), *[None] * 3], strict=True):
        mixed += [request] if extra is None else [extra[0], request]
    finished = list(engine.serve(mixed, batch_size=3))
    errors = {result.key: result.error for result in finished if result.error}
    assert {key: type(error) for key, error in errors.items()} == {key: kind for key, (_, kind) in bad.items()}
    assert all(result.answer is None for result in finished if result.error)
    check(engine, made, [result for result in finished if not result.error])


def test_an_answer_that_fails_on_its_way_leaves_the_others_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [replace(request, sampling=Sampling(10)) for request in requests(6)]
    real = Answering.take

    def failing(self: Answering, logits: Any, *drawn: Any) -> None:
        broken = len(self.prompt) == len(engine.prompt(made[2].conversation)) and len(self.drawn) == 4  # type: ignore[arg-type]
        real(self, logits * np.float32(np.nan) if broken else logits, *drawn)

    monkeypatch.setattr(Answering, "take", failing)
    finished = list(engine.serve(made, batch_size=4))
    failed = [result for result in finished if result.error]
    assert [result.key for result in failed] == [2] and "not finite" in str(failed[0].error)
    monkeypatch.undo()
    check(engine, [r for r in made if r.key != 2], [result for result in finished if not result.error])


def test_requests_are_taken_as_there_is_room_for_them(engine: Engine) -> None:
    taken = 0

    def lazily() -> Iterator[Request]:
        nonlocal taken
        for request in requests(12):
            taken += 1
            yield request

    for number, _ in enumerate(engine.serve(lazily(), batch_size=2), start=1):
        assert taken <= number + 2 + 2
    assert taken == 12


def test_what_is_being_answered_goes_on_while_no_request_comes(engine: Engine) -> None:
    made, done = requests(3), []

    def hesitant() -> Iterator[Request | None]:
        yield None
        for number, request in enumerate(made):
            yield request
            while len(done) <= number:
                yield None

    for finished in engine.serve(hesitant(), batch_size=2):
        done.append(finished)
    check(engine, made, done)


def test_a_place_is_filled_as_soon_as_it_is_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long answer and many short ones, two places: the short ones pass through the second place."""
    sizes = []
    real = engine.step
    monkeypatch.setattr(engine, "step", lambda going: (sizes.append(len(going)), real(going)))
    plain = [engine.prompt([Message.of("user", f"Number {n}")]) for n in range(6)]
    lengths = [41, 6, 6, 6, 6, 6]
    made = [
        Request(n, prompt, Sampling(length, ignore_eos=True, speculate="off"))
        for n, (prompt, length) in enumerate(zip(plain, lengths, strict=True))
    ]
    wait_for_reading(monkeypatch)
    order = [result.key for result in engine.serve(made, batch_size=2)]
    assert order == [1, 2, 3, 4, 5, 0]
    assert sizes == [2] * 25 + [1] * 15


def wait_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every prompt be laid out by the time somebody looks, so that the order does not hang on threads."""
    from qvl.runtime import scheduler

    real = scheduler._Reader.head

    def patient(self: Any, *, wait: bool) -> Any:  # noqa: ARG001
        return real(self, wait=True)

    monkeypatch.setattr(scheduler._Reader, "head", patient)


def test_reading_goes_on_while_others_are_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that takes long to read keeps nobody waiting who is in the batch."""
    gate, real = threading.Event(), engine.laid_out
    threads = set()

    def slow(conversation: Any) -> Any:
        threads.add(threading.current_thread())
        if conversation == "slow":
            assert gate.wait(600)
            return real([Message.of("user", "late")])
        return real(conversation)

    monkeypatch.setattr(engine, "laid_out", slow)
    quick = Request("quick", [Message.of("user", "Hi")], Sampling(30, ignore_eos=True))
    late = Request("late", "slow", Sampling(2))  # type: ignore[arg-type]
    results = engine.serve([quick, late], batch_size=2)
    assert next(results).key == "quick", "was answered to its end while the other was being read"
    gate.set()
    assert next(results).key == "late"
    assert threading.main_thread() not in threads


def test_closing_in_the_middle_leaves_no_thread(engine: Engine) -> None:
    results = engine.serve(requests(10), batch_size=3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 300
    while any(thread.name.startswith("qvl-read") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_does_not_fit_beside_others_waits_for_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is memory for one at a time, and never for the huge one."""

    def check_memory(prompt: Any, _sampling: Sampling, *, promised: int) -> None:
        if promised or len(prompt) > 300:
            raise MemoryLimitError("no memory for it")

    made = [replace(request, sampling=Sampling(8, ignore_eos=True)) for request in requests(6)]
    huge = Request("huge", [Message.of("user", "word " * 400)], Sampling(8))
    sizes = []
    real = engine.step
    monkeypatch.setattr(engine, "check_memory", check_memory)
    monkeypatch.setattr(engine, "step", lambda going: (sizes.append(len(going)), real(going)))
    finished = list(engine.serve([made[0], huge, *made[1:]], batch_size=4))
    errors = {result.key: result.error for result in finished if result.error}
    assert set(errors) == {"huge"} and isinstance(errors["huge"], MemoryLimitError)
    assert set(sizes) == {1}
    check(engine, made, [result for result in finished if not result.error])
    unchecked = list(engine.serve([huge], batch_size=1, check_memory=False))
    assert unchecked[0].answer is not None


@pytest.mark.parametrize("room", [1, 8])
def test_what_has_finished_takes_no_memory_from_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """room: tokens of each answer; one of a single token ends as it begins."""
    caches: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real = engine.cache

    def cache(capacity: int) -> Any:
        made = real(capacity)
        caches.append(weakref.ref(made))
        return made

    def check_memory(*_: Any, **__: Any) -> None:
        alive.append(sum(reference() is not None for reference in caches))

    monkeypatch.setattr(engine, "cache", cache)
    monkeypatch.setattr(engine, "check_memory", check_memory)
    made = [replace(request, sampling=Sampling(room, ignore_eos=True)) for request in requests(4)]
    assert len(list(engine.serve(made, batch_size=1))) == len(caches) == 4
    assert alive == [0, 0, 0, 0]


def test_memory_set_aside_for_others_does_not_look_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a cache takes its memory as it fills, so what is free now may be promised."""
    cache = engine.cache(1000)
    whole = cache.untouched
    assert whole == 2 * 3 * 1000 * 2 * 16 * 4
    prompt = engine.prompt([Message.of("user", "Hi")])
    engine.begin(prompt, Sampling(4), cache)
    assert cache.untouched == whole * (1000 - len(prompt)) // 1000
    monkeypatch.setattr(memory, "available_bytes", lambda: memory.need(engine.config, prompt, 4, "float32", 0).total)
    engine.check_memory(prompt, Sampling(4))
    with pytest.raises(MemoryLimitError):
        engine.check_memory(prompt, Sampling(4), promised=1)


def test_a_batch_of_no_places_is_refused_and_one_of_no_requests_is_empty(engine: Engine) -> None:
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        engine.serve([], batch_size=0)
    assert list(engine.serve([], batch_size=3)) == []
    assert engine.generate_batch([]) == []


def test_a_bad_conversation_in_a_plain_batch_is_raised(engine: Engine) -> None:
    with pytest.raises(QvlError, match="no/such"):
        engine.generate_batch([[Message.of("user", "Hi")], [Message.of("user", Image("/no/such.png"))]])


def test_closing_does_not_wait_for_what_is_being_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a picture from a server that has gone silent."""
    reading, over = threading.Event(), threading.Event()
    real = engine.laid_out

    def slow(conversation: Any) -> Any:
        if conversation == "slow":
            reading.set()
            over.wait(60)
            return real([Message.of("user", "Hi")])
        return real(conversation)

    monkeypatch.setattr(engine, "laid_out", slow)
    made: list[Any] = [*requests(1), Request("slow", "slow", Sampling(2)), Request("never", "never", Sampling(2))]  # type: ignore[arg-type]
    results = engine.serve(made, batch_size=1)
    assert next(results).key == 0 and reading.wait(60)
    begun = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 30
    over.set()
