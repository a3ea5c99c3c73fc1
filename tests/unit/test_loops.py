"""Answers that go round in a loop are ended; what only looks like one is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.processing.tokenizer import Tokenizer
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.loops import LoopWatch
from qvl.runtime.records import Sampling
from qvl.runtime.writer import AnswerWriter
from tests.conftest import CheckpointOf
from tests.unit.chained import chained, cycle

STOPPING = Sampling(max_new_tokens=10_000, stop_loops=True)
END = 1000  # <|im_end|>


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Engine.open(Profile(model=str(tiny_checkpoint))).processor.tokenizer


def looped(text: str) -> bool:
    """Whether the watch takes letters of a text, as tokens, for a loop."""
    watch = LoopWatch()
    for letter in text:
        watch.push(ord(letter))
        if watch.end is not None:
            return True
    return False


def written(tokenizer: Tokenizer, ids: list[int], sampling: Sampling = STOPPING) -> tuple[AnswerWriter, list[str]]:
    writer = AnswerWriter(tokenizer, sampling, {END}, sampling.max_new_tokens)
    pieces = []
    for token in ids:
        pieces.append(writer.push(token))
        assert "".join(pieces) == writer.text
        if writer.finish_reason:
            break
    return writer, pieces


ORDINARY = {
    "numbers": " ".join(str(number) for number in range(500)),
    "a list": "".join(f"{number}. Item number {number} of the list\n" for number in range(60)),
    "a table": "".join(f"| {number:3} | yes | no | 0.{number % 7} |\n" for number in range(80)),
    "a rule": "| name | size |\n|" + "-" * 30 + "|" + "-" * 30 + "|\n| a | 1 |\n",
    "a leader": "Contents\nChapter one " + "." * 120 + " 7\nChapter two " + "." * 118 + " 19\n",
    "a row of zeros": "0, " * 50 + "1",
    "digits of a fraction": "0." + str(10**300 // 97).zfill(299),
    "a refrain": ("Row, row, row your boat,\n" * 3 + "gently down the stream.\n") * 2,
    "boxes": "".join(f"({100 + n},{200 + n}),({300 + n},{400 + n})\n" for n in range(60)),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_texts_are_left_alone(tokenizer: Tokenizer, kind: str) -> None:
    text = ORDINARY[kind]
    assert not looped(text)
    writer, _ = written(tokenizer, tokenizer.encode(text))
    assert writer.finish_reason is None
    writer.push(END)
    assert writer.finish_reason == "stop" and writer.text == text


@pytest.mark.parametrize(
    "unit", ["x", "ab", "the end. ", "| N/A | N/A |\n", "It is what it is and that is all there is.\n"]
)
@pytest.mark.parametrize("before", ["", "Dear Sir,\n", "xxxabab"])
def test_a_loop_is_ended_and_its_first_copy_kept(tokenizer: Tokenizer, unit: str, before: str) -> None:
    ids = tokenizer.encode(before) + tokenizer.encode(unit) * 400
    writer, pieces = written(tokenizer, ids)
    assert writer.finish_reason == "loop"
    text = "".join(pieces)
    assert (before + unit).startswith(text) or text.startswith(before + unit)
    assert len(text) <= len(before + unit) + len(unit)
    assert tokenizer.decode(writer.token_ids, keep_special=True) == writer.marked_text == text


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 40, 63, 64])
def test_every_period_up_to_the_longest_is_seen_and_none_too_soon(period: int) -> None:
    unit = np.random.default_rng(period).permutation(1000)[:period].tolist()
    watch, taken = LoopWatch(), 0
    while watch.end is None:
        watch.push(unit[taken % period])
        taken += 1
        assert taken < 1000
    assert watch.end == period
    assert taken == max(160, 4 * period)


def test_what_repeats_beyond_the_longest_period_is_no_loop() -> None:
    watch = LoopWatch()
    for token in list(range(65)) * 20:
        watch.push(token)
        assert watch.end is None and watch.certain == watch.count


def test_a_streamed_answer_never_shows_a_second_copy(tokenizer: Tokenizer) -> None:
    unit = tokenizer.encode(" again and again")
    _, pieces = written(tokenizer, tokenizer.encode("Once") + unit * 100)
    assert "".join(pieces) == "Once again and again"
    # What turns out to be no loop is shown as soon as that is known.
    ids = tokenizer.encode("Once") + unit * 3 + tokenizer.encode(" and then no more.")
    _, pieces = written(tokenizer, ids)
    assert "".join(pieces).startswith("Once again and again again and again again and again and then no")


def test_half_a_character_is_not_left_over(tokenizer: Tokenizer) -> None:
    face = tokenizer.encode("\U0001f600")
    assert len(face) > 1
    writer, _ = written(tokenizer, tokenizer.encode("So: ") + face * 200)
    assert writer.finish_reason == "loop" and writer.text == "So: \U0001f600"
    # The character before ends in the same byte as the one that is repeated: the loop begins within it.
    shifted = tokenizer.encode("\U0001f500")
    assert shifted[-1] == face[-1]
    writer, _ = written(tokenizer, shifted + face * 200)
    assert writer.finish_reason == "loop" and "\ufffd" not in writer.text and "\U0001f600" in writer.text


def test_a_stop_text_an_end_and_the_limit_come_before_the_loop(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("la " * 60)
    writer, _ = written(tokenizer, ids, replace(STOPPING, stop=("la la la",)))
    assert writer.finish_reason == "stop" and writer.text == ""
    writer, _ = written(tokenizer, [*ids[:20], END])
    assert writer.finish_reason == "stop" and writer.text == tokenizer.decode(ids[:20])
    writer, _ = written(tokenizer, ids, replace(STOPPING, max_new_tokens=20))
    assert writer.finish_reason == "length" and writer.text == tokenizer.decode(ids[:20])
    assert writer.token_ids == ids[:20]


def test_min_new_tokens_are_written_loop_or_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x") * 400
    watch = AnswerWriter(tokenizer, replace(STOPPING, min_new_tokens=300), {END}, 10_000)
    reasons = []
    while not watch.finish_reason:
        watch.push(ids[len(reasons)])
        reasons.append(watch.finish_reason)
    assert reasons == [None] * 299 + ["loop"]


@pytest.mark.parametrize("speculate", ["off", "on"])
def test_the_engine_says_that_it_ended_a_loop(checkpoint_variant: CheckpointOf, speculate: str) -> None:
    folder = checkpoint_variant("untied")
    tokenizer = Engine.open(Profile(model=str(folder), device="cpu")).processor.tokenizer
    ids = list(dict.fromkeys(tokenizer.encode("round and")))
    engine = chained(folder, cycle(ids, tokenizer.encode("\n")[0]))
    prompt = engine.prompt([{"role": "user", "content": "Go."}])
    sampling = Sampling(170, stop_loops=True, speculate=speculate)  # type: ignore[arg-type]
    chunks = list(engine.stream(prompt, sampling))
    answer = engine.generate(prompt, sampling)
    assert answer.finish_reason == chunks[-1].finish_reason == "loop"
    assert list(answer.token_ids) == [token for chunk in chunks for token in chunk.token_ids] == ids
    assert answer.text == answer.marked_text == "".join(chunk.text for chunk in chunks) == tokenizer.decode(ids)
    assert len(ids) < 160 <= answer.stats.new_tokens < 170 + 1
    assert engine.generate(prompt, replace(sampling, stop_loops=False, max_new_tokens=165)).finish_reason == "length"
