"""A session answers as a fresh run does and computes only what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl import ops
from qvl.errors import ContextLimitError, MemoryLimitError, UsageError
from qvl.messages import Image, Message
from qvl.profile import Profile
from qvl.runtime import memory
from qvl.runtime.cache import cache_bytes
from qvl.runtime.engine import Engine
from qvl.runtime.records import Chunk, Sampling, Stats
from qvl.runtime.session import Session

SHORT = Sampling(max_new_tokens=12)


def picture(seed: int, side: int = 140) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))


def ask(session: Session, talk: list[Message], sampling: Sampling = SHORT) -> tuple[str, Stats]:
    """The answer's marked text and figures, having seen that a run without a memory gives the same."""
    chunks = list(session.stream(talk, sampling))
    fresh = session._engine.generate(talk, sampling)
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == fresh.token_ids
    assert "".join(chunk.text for chunk in chunks) == fresh.text and chunks[-1].finish_reason == fresh.finish_reason
    stats = chunks[-1].stats
    assert stats is not None and stats.computed_tokens + stats.reused_tokens == stats.prompt_tokens
    assert stats.encoded_visions + stats.reused_visions == sum(isinstance(p, Image) for m in talk for p in m.parts)
    assert session.tokens == stats.prompt_tokens + stats.new_tokens - 1
    return fresh.marked_text, stats


def test_the_second_turn_equals_a_fresh_run_and_costs_only_the_new_tokens(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(1), "What is this?")]
    _, stats = ask(session, talk)
    assert stats.reused_tokens == 0
    for question in ("Say more about it.", "And?"):
        before = engine.prompt(talk).input_ids
        talk += [Message.of("assistant", ""), Message.of("user", question)]
        after = engine.prompt(talk).input_ids
        same = before == after[: len(before)]
        _, stats = ask(session, talk)
        assert stats.reused_tokens == (len(before) if same.all() else int(np.argmin(same)))
        assert stats.computed_tokens < 40 and stats.encoded_visions == 0


def test_the_answers_own_tokens_are_not_computed_again(engine: Engine) -> None:
    tokenizer = engine.processor.tokenizer
    for seed in range(40):
        talk = [Message.of("user", f"Tell me of number {seed}.")]
        session = Session(engine)
        text, first = ask(session, talk)
        ids = engine.generate(talk, SHORT).token_ids
        if tuple(tokenizer.encode("\n" + text)[1:]) == ids:
            break
    else:
        pytest.fail("no answer of this model reads back as its own tokens")
    _, stats = ask(session, [*talk, Message.of("assistant", text), Message.of("user", "More.")])
    assert stats.reused_tokens == first.prompt_tokens + first.new_tokens - 1


def test_an_answer_that_was_broken_off_can_be_gone_on_from(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(2), "Describe it at length.")]
    stream = session.stream(talk, Sampling(max_new_tokens=50, speculate="off"))
    for _ in range(5):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    prompt = len(engine.prompt(talk))
    assert session.tokens == prompt + 4
    _, stats = ask(session, [*talk, Message.of("assistant", ""), Message.of("user", "Shorter.")])
    assert stats.reused_tokens == prompt
    _, stats = ask(session, talk)
    assert stats.computed_tokens == 1


@pytest.mark.parametrize("forward", [0, 1, 4])
def test_ctrl_c_in_the_middle_of_a_forward_costs_no_truth(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, forward: int
) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(3), "one two three one two three one two")]
    ask(session, talk)
    talk = [*talk, Message.of("user", picture(4), "And this?")]
    layer = engine.model.model.layers[1]
    count, real = 0, layer.forward

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > forward:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(session.stream(talk, Sampling(max_new_tokens=30, speculate="on")))
    _, stats = ask(session, talk, Sampling(max_new_tokens=30))
    assert stats.computed_tokens == (1 if forward else stats.prompt_tokens - stats.reused_tokens)
    assert stats.reused_tokens > 40


def test_ctrl_c_before_the_last_layer_has_written_what_it_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(7), "What is this?")]
    ask(session, talk)
    before = session.tokens
    talk = [*talk, Message.of("user", "one two three " * 20)]
    calls, real = 0, ops.cached_attention

    def interrupted(*arguments: Any, **choices: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == engine.config.num_hidden_layers:
            raise KeyboardInterrupt
        return real(*arguments, **choices)

    with monkeypatch.context() as patched:
        patched.setattr(ops, "cached_attention", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(session.stream(talk, SHORT))
    assert session.tokens <= before
    _, stats = ask(session, talk)
    assert stats.computed_tokens > 20


def test_a_picture_that_was_seen_is_not_encoded_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.features.clear()
    encoded = []
    real = engine.model.visual.forward
    monkeypatch.setattr(engine.model.visual, "forward", lambda *a: encoded.append(a[1]) or real(*a))
    session = Session(engine)
    talk = [Message.of("user", picture(5), picture(6), "Which is brighter?")]
    list(session.stream(talk, SHORT))
    assert len(encoded) == 2
    list(session.stream([*talk, Message.of("user", "Why?")], SHORT))
    other = [Message.of("user", "Here it is again: ", picture(6))]
    _, stats = ask(Session(engine), other)
    assert len(encoded) == 2 and stats.reused_visions == 1 and stats.reused_tokens == 0


def test_another_picture_in_the_same_place_is_noticed(engine: Engine) -> None:
    session = Session(engine)
    ask(session, [Message.of("user", picture(7), "What is this?")])
    talk = [Message.of("user", picture(8), "What is this?")]
    prompt = engine.prompt(talk)
    _, stats = ask(session, talk)
    assert stats.reused_tokens == prompt.vision_starts(engine.config)[0] and stats.encoded_visions == 1
    # The first of two stays, the second is another one of the same size.
    ask(session, [Message.of("user", picture(8), picture(9), "Compare.")])
    talk = [Message.of("user", picture(8), picture(10), "Compare.")]
    _, stats = ask(session, talk)
    assert stats.reused_tokens == engine.prompt(talk).vision_starts(engine.config)[1]


def test_another_try_undo_and_edits_go_back_to_what_is_common(engine: Engine) -> None:
    session = Session(engine)
    first = [Message.of("user", picture(11), "What is on the left?")]
    longer = [*first, Message.of("assistant", "A star."), Message.of("user", "What is on the right?")]
    ask(session, first)
    ask(session, longer)
    _, again = ask(session, longer)
    assert again.computed_tokens == 1
    _, undone = ask(session, first)
    assert undone.computed_tokens == 1
    edited = [*first[:0], Message.of("user", picture(11), "What is on the floor?")]
    _, stats = ask(session, edited)
    assert 25 < stats.reused_tokens < stats.prompt_tokens - 1
    _, stats = ask(session, [Message.of("system", "Be brief."), *first])
    assert stats.reused_tokens < 10, "the first turn is another one"


def test_each_call_samples_afresh(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", "Say something.")]
    for sampling in (
        Sampling(20, temperature=1.0, seed=4),
        Sampling(20, temperature=1.0, seed=4, speculate="on"),
        Sampling(20, repetition_penalty=1.3),
    ):
        ask(session, talk, sampling)
        ask(session, talk, sampling)


def test_an_answer_that_was_left_for_another_one_does_not_go_on(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", "Count.")]
    left = session.stream(talk, SHORT)
    next(left)
    ask(session, talk)
    with pytest.raises(UsageError, match="left for another one"):
        next(left)
    ask(session, talk)


def test_what_a_session_holds_can_be_looked_at_in_the_middle_of_an_answer(engine: Engine) -> None:
    session = Session(engine)
    talk = [Message.of("user", "Count.")]
    held = []
    for _ in session.stream(talk, Sampling(max_new_tokens=6, speculate="off")):
        held.append(session.tokens)
    prompt = len(engine.prompt(talk))
    assert held == list(range(prompt, prompt + 6))
    session.clear()
    assert session.tokens == 0
    _, stats = ask(session, talk)
    assert stats.reused_tokens == 0


def test_a_conversation_over_the_context_says_so_and_the_session_lives_on(tiny_checkpoint: Path) -> None:
    engine = Engine.load(Profile(model=str(tiny_checkpoint), device="cpu", max_context=90))
    session = Session(engine)
    talk = [Message.of("user", picture(12), "What is this?")]
    chunks = list(session.stream(talk, Sampling(max_new_tokens=500)))
    assert chunks[-1].finish_reason == "length" and session.tokens == 89
    with pytest.raises(ContextLimitError, match="the context holds 90") as caught:
        list(session.stream([*talk, *talk], SHORT))
    assert caught.value.limit == 90 and caught.value.tokens > 90 and caught.value.vision_tokens == 50
    laid_out = Engine.load(Profile(model=str(tiny_checkpoint), device="cpu")).prompt([*talk, *talk])
    with pytest.raises(ContextLimitError):
        list(session.stream(laid_out, SHORT))
    _, stats = ask(session, talk)
    assert stats.computed_tokens == 1


def test_memory_that_a_session_holds_already_is_not_asked_for_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(engine)
    talk = [Message.of("user", picture(13), "word " * 300)]
    prompt = engine.prompt(talk)
    fresh = memory.need(engine.config, prompt, 12, "float32", 0)
    monkeypatch.setattr(memory, "available_bytes", lambda: fresh.total - 1)
    with pytest.raises(MemoryLimitError, match=rf"{len(prompt)} tokens"):
        session.check_memory(prompt, SHORT)
    ask(session, talk)
    session.check_memory(prompt, SHORT)
    longer = engine.prompt([*talk, Message.of("user", "And?")])
    session.check_memory(longer, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_walk_through_conversations_gives_what_fresh_runs_give(engine: Engine, seed: int) -> None:
    random = np.random.default_rng(seed)
    session = Session(engine)
    talk: list[Message] = []
    for _ in range(14):
        deed = random.integers(6)
        if deed == 0 and len(talk) > 1:
            talk = talk[: int(random.integers(1, len(talk)))]
        elif deed == 1 and talk:
            place = int(random.integers(len(talk)))
            talk = [*talk[:place], Message.of("user", picture(int(random.integers(3)), 84), "or"), *talk[place + 1 :]]
        elif deed == 2:
            talk = [*talk, Message.of("user", picture(int(random.integers(4)), 112), "and this")]
        elif deed == 3 and talk:
            stream = session.stream(talk, Sampling(max_new_tokens=20, speculate="on"))
            for _, _chunk in zip(range(int(random.integers(1, 6))), stream, strict=False):
                pass
        elif deed > 3:
            talk = [*talk, Message.of("user", "word " * int(random.integers(1, 30)))]
        if talk:
            penalty = float(random.choice([1.0, 1.2]))
            mode = str(random.choice(["on", "off", "auto"]))
            text, _ = ask(session, talk, Sampling(8, repetition_penalty=penalty, speculate=mode))  # type: ignore[arg-type]
            if random.integers(2):
                talk = [*talk, Message.of("assistant", text)]


def test_the_chunks_of_a_session_are_those_of_the_engine(engine: Engine) -> None:
    talk = [Message.of("user", "Count to ten.")]

    def plain(chunks: list[Chunk]) -> list[tuple[object, ...]]:
        return [(chunk.text, chunk.token_ids, chunk.finish_reason) for chunk in chunks]

    sampling = Sampling(16, speculate="on")
    assert plain(list(Session(engine).stream(talk, sampling))) == plain(list(engine.stream(talk, sampling)))


def test_memory_that_was_set_aside_and_never_written_to_is_not_free(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of 500 tokens was allowed for and ended after one: the rest still looks free to the machine."""
    session = Session(engine)
    talk = [Message.of("user", "Hi")]
    ends = engine.generate(talk, SHORT).token_ids[0]
    monkeypatch.setattr(engine, "generation", engine.generation.ending(ends))
    (*_, last) = session.stream(talk, Sampling(max_new_tokens=500))
    assert last.finish_reason == "stop"
    prompt = engine.prompt(talk)
    asked: dict[str, int] = {}
    monkeypatch.setattr(engine, "check_memory", lambda *_, promised=0, **__: asked.update(promised=promised))
    token = cache_bytes(engine.config, 1, "float32")
    written = len(prompt)
    session.check_memory(prompt, Sampling(max_new_tokens=500))
    assert asked["promised"] == token * (len(prompt) + 500 - written)
    session.check_memory(prompt, Sampling(max_new_tokens=100))
    assert asked["promised"] == token * (len(prompt) + 100 - written)
