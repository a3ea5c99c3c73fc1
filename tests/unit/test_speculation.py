"""Drafts change how fast an answer comes and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import UsageError
from qvl.messages import Image, Message
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.lookup import Lookup
from qvl.runtime.records import Answer, Request, Sampling
from qvl.runtime.speculation import Speculation, StepCosts
from tests.conftest import CheckpointOf
from tests.unit.chained import chained, cycle

WORDS = "the,a,cat,dog,12,34,.,star,red,blue,|,row,\n,in,on,of,is,猫,<b>,0.5"
LINE = "alpha bet gamm delt esilonz the iotkap\n"  # no token of it comes twice


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))


@pytest.fixture(scope="module")
def parrot(checkpoint_variant: CheckpointOf) -> Engine:
    """Says LINE over and over."""
    folder = checkpoint_variant("untied")
    tokenizer = Engine.open(Profile(model=str(folder), device="cpu")).processor.tokenizer
    ids = tokenizer.encode(LINE)
    assert len(set(ids)) == len(ids) > 12
    return chained(folder, cycle(ids, tokenizer.encode("\n")[0]))


def both(engine: Engine, prompt: object, sampling: Sampling) -> tuple[Answer, Answer]:
    """The answer with and without drafts, having seen that they are the same."""
    plain, drafted = (
        engine.generate(prompt, replace(sampling, speculate=mode))  # type: ignore[arg-type]
        for mode in ("off", "on")
    )
    assert plain.token_ids == drafted.token_ids
    assert (plain.text, plain.marked_text) == (drafted.text, drafted.marked_text)
    assert plain.finish_reason == drafted.finish_reason
    assert plain.stats.drafted_tokens == 0 and plain.stats.new_tokens == drafted.stats.new_tokens
    return plain, drafted


@pytest.mark.slow
def test_a_hundred_prompts_of_all_kinds_are_answered_as_without_drafts(engine: Engine) -> None:
    random = np.random.default_rng(7)
    drafted = accepted = 0
    for number in range(100):
        text = " ".join(random.choice(WORDS.split(","), size=int(random.integers(1, 60))))
        sides = random.integers(30, 150, size=2)
        parts = [Image(random.integers(0, 256, (*sides, 3), np.uint8)), text] if number % 4 == 0 else [text]
        length = int(random.integers(1, 40))
        sampling = Sampling(
            max_new_tokens=length,
            min_new_tokens=int(random.integers(length)) if number % 3 == 0 else 0,
            repetition_penalty=(1.0, 1.0, 1.05, 1.3)[number % 4],
            temperature=(0.0, 0.0, 0.0, 0.0, 0.8)[number % 5],
            top_p=0.9,
            seed=number,
            stop=tuple(random.choice(list("aeiou "), size=number % 2)),
            stop_loops=number % 2 == 1,
        )
        _, answer = both(engine, engine.prompt([Message.of("user", *parts)]), sampling)
        drafted += answer.stats.drafted_tokens
        accepted += answer.stats.accepted_tokens
    assert drafted > accepted > 20, "drafts were both right and wrong"


def test_what_repeats_itself_takes_a_fraction_of_the_steps(parrot: Engine) -> None:
    prompt = parrot.prompt([Message.of("user", "Say it.")])
    _, answer = both(parrot, prompt, Sampling(200))
    assert answer.text.startswith(LINE * 4)
    assert answer.stats.accepted_tokens == answer.stats.drafted_tokens > 120
    chunks = list(parrot.stream(prompt, Sampling(200, speculate="on")))
    assert len(chunks) < 100 and max(len(chunk.token_ids) for chunk in chunks) == 17
    # The line in the prompt is as good as having said it.
    quoted = parrot.prompt([Message.of("user", f"Repeat: \n{LINE}")])
    short = Sampling(20)
    assert both(parrot, quoted, short)[1].stats.accepted_tokens > both(parrot, prompt, short)[1].stats.accepted_tokens


@pytest.mark.parametrize("length", [*range(1, 9), 30, 31, 97])
def test_the_limit_of_tokens_holds_in_the_middle_of_a_draft(parrot: Engine, length: int) -> None:
    prompt = parrot.prompt([Message.of("user", "Say it.")])
    _, answer = both(parrot, prompt, Sampling(length))
    assert len(answer.token_ids) == length and answer.finish_reason == "length"


@pytest.mark.parametrize("stop", ["iotkap", "a be", "delt esilonz the", "\nalpha"])
@pytest.mark.parametrize("after", [0, 47])
def test_a_stop_text_in_the_middle_of_a_draft_ends_the_answer_there(parrot: Engine, stop: str, after: int) -> None:
    head = parrot.generate([Message.of("user", "Say it.")], Sampling(after + 1)).text
    talk = [Message.of("user", f"Say it. \n{head}" if after else "Say it.")]
    plain, _ = both(parrot, parrot.prompt(talk), Sampling(150, stop=(stop,)))
    assert plain.finish_reason == "stop" and stop not in plain.text


def test_a_draft_that_has_the_end_of_the_turn_ends_it(checkpoint_variant: CheckpointOf) -> None:
    folder = checkpoint_variant("untied")
    tokenizer = Engine.open(Profile(model=str(folder), device="cpu")).processor.tokenizer
    newline, end = tokenizer.encode("\n")[0], tokenizer.special_id("<|im_end|>")
    ids = list(dict.fromkeys(tokenizer.encode("alpha beta gamma delta")))
    engine = chained(folder, {newline: ids[0], **dict(zip(ids, [*ids[1:], end], strict=True)), end: newline})
    text = tokenizer.decode(ids)
    talk = [Message.of("user", "Say it."), Message.of("assistant", text), Message.of("user", "Again.")]
    plain, drafted = both(engine, engine.prompt(talk), Sampling(100))
    assert plain.token_ids == (*ids, end) and plain.finish_reason == "stop" and plain.text == text
    assert drafted.stats.accepted_tokens > 2
    ignoring, _ = both(engine, engine.prompt(talk), Sampling(100, ignore_eos=True))
    assert ignoring.finish_reason == "length"
    late, _ = both(engine, engine.prompt(talk), Sampling(100, min_new_tokens=len(ids) + 3))
    assert len(late.token_ids) > len(ids) + 3


def test_a_batch_of_drafts_gives_each_what_it_gives_alone(parrot: Engine) -> None:
    made = [
        Request(n, [Message.of("user", f"Say it {n} times.")], Sampling(60 + 9 * n, speculate=mode))
        for n, mode in enumerate(("on", "off", "auto", "on", "auto", "on"))
    ]
    finished = {result.key: result.answer for result in parrot.serve(made, batch_size=3)}
    for request in made:
        answer, alone = finished[request.key], parrot.generate(request.conversation, request.sampling)
        assert answer is not None and answer.token_ids == alone.token_ids
    assert all(answer is not None and answer.stats.accepted_tokens for n, answer in finished.items() if n in (0, 3, 5))


def test_a_draw_is_drafted_for_only_when_asked_and_draws_the_same(parrot: Engine) -> None:
    prompt = parrot.prompt([Message.of("user", "Say it.")])
    draw = Sampling(60, temperature=0.05, seed=1)
    _, drafted = both(parrot, prompt, draw)
    assert drafted.stats.accepted_tokens > 20
    assert parrot.generate(prompt, replace(draw, speculate="auto")).stats.drafted_tokens == 0
    assert parrot.generate(prompt, replace(draw, temperature=0.0, speculate="auto")).stats.drafted_tokens > 0


def test_an_unknown_way_to_speculate_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="speculate must be auto, on or off"):
        engine.generate([Message.of("user", "Hi")], Sampling(speculate="always"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="speculate"):
        Profile().revised({"generation": {"speculate": "always"}}, "test")
    with_it = Profile().revised({"generation": {"speculate": "off", "stop_loops": True}}, "test")
    engine = Engine.open(with_it.revised({"model": engine.profile.model}, "test"))
    assert engine.sampling().speculate == "off" and engine.sampling().stop_loops
    assert engine.sampling(speculate="on").speculate == "on"


def lookup(text: str, room: int = 50) -> Lookup:
    return Lookup(np.asarray([ord(letter) for letter in text], np.int64), room, never=[ord("#")], last=[ord("$")])


def proposed(text: str, limit: int = 4) -> str:
    return "".join(map(chr, lookup(text).propose(limit)))


def test_what_followed_before_is_proposed() -> None:
    assert proposed("the cat and the c") == "at a"
    assert proposed("nothing twice") == "", "a single letter is no hint"
    assert proposed("") == proposed("a") == proposed("ab") == ""
    assert proposed("abX abY ab") == "Y ab", "the newest of equally good ones"
    assert proposed("zabX  ab") == "X  a"
    assert proposed("  zabX yabY zab") == "X ya", "the longer match before the newer one"


def test_what_goes_round_goes_on_going_round() -> None:
    assert proposed("xababab", 7) == "abababa"
    assert proposed("aaa", 5) == "aaaaa"


def test_pictures_are_never_proposed_and_nothing_behind_the_end() -> None:
    assert proposed("ab#c ab") == ""
    assert proposed("abc#d ab") == "c"
    assert proposed("abc$d ab") == "c$"


def test_pushed_tokens_count() -> None:
    seen = lookup("the cat and ", room=3)
    assert seen.propose(4) == []
    for letter in "the":
        seen.push(ord(letter))
    assert "".join(map(chr, seen.propose(4))) == " cat"


def measured(seconds: dict[int, float]) -> StepCosts:
    costs = StepCosts()
    for tokens, taken in seconds.items():
        costs.record(tokens, 100.0)  # the first of a size is not counted
        costs.record(tokens, taken)
    return costs


def fed(costs: StepCosts, right: bool, drafts: int = 30) -> Speculation:
    speculation = Speculation(Sampling(), costs)
    for _ in range(drafts):
        speculation.record(4, 4 if right else 0)
    return speculation


def test_drafts_stop_where_they_do_not_pay() -> None:
    flat, steep = measured({1: 1.0, 3: 1.0, 5: 1.0, 9: 1.0, 17: 1.0}), measured({1: 1.0, 3: 3.0, 17: 17.0})
    assert Speculation(Sampling(), flat).length(1) == 16, "free tokens are worth a try"
    assert Speculation(Sampling(), steep).length(1) == 0, "a token of a draft costs what it costs alone"
    assert fed(steep, right=True).length(1) == 0
    assert fed(flat, right=True).length(1) == 16
    gentle = measured({1: 1.0, 3: 1.3, 17: 2.4})
    assert fed(gentle, right=True).length(1) == 16
    assert fed(gentle, right=False).length(1) == 0, "drafts that were wrong thirty times"
    assert Speculation(Sampling(speculate="off"), flat).length(1) == 0
    assert Speculation(Sampling(temperature=1.0), flat).length(1) == 0
    assert Speculation(Sampling(speculate="on"), steep).length(1) > 0


def test_now_and_then_a_draft_is_tried_again() -> None:
    speculation = fed(measured({1: 1.0, 3: 1.5, 17: 3.0}), right=False)
    lengths = [speculation.length(1) for _ in range(40)]
    first = next(n for n, length in enumerate(lengths) if length)
    assert 20 <= first < 40 and not any(lengths[:first])
    speculation.record(2, 2)
    for _ in range(6):
        speculation.record(4, 4)
    assert speculation.length(1) > 0, "the text has become one that repeats itself"


def test_in_a_batch_the_others_pay_for_a_longer_step_too() -> None:
    costs = measured({1: 1.0, 5: 1.2, 8: 2.0, 10: 3.2, 24: 9.0})
    assert fed(costs, right=True).length(1) > 0
    assert fed(costs, right=True).length(8) == 0


def test_a_step_takes_what_the_fastest_took_and_may_grow() -> None:
    costs = measured({1: 1.0, 5: 2.0})
    for _ in range(3):
        costs.record(5, 50.0)  # the machine was busy with something else
    assert 2.0 < costs.ratio(1, 5) < 2.2
    assert costs.ratio(1, 3) == pytest.approx((1 + costs.ratio(1, 5)) / 2)
    for _ in range(300):
        costs.record(5, 9.0)
    assert costs.ratio(1, 5) == 9.0
    assert StepCosts().ratio(1, 5) < 1.5, "not measured yet"
    assert measured({1: 1.0, 5: 0.5}).ratio(1, 5) == 1.0, "no step is cheaper for being longer"
