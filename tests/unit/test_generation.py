"""Stop strings, settings out of three sources, and how an answer ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvl.errors import CheckpointError, UsageError
from qvl.processing.tokenizer import Tokenizer
from qvl.runtime.generation import GenerationConfig, resolve
from qvl.runtime.records import Sampling
from qvl.runtime.stop import StopText
from qvl.runtime.writer import AnswerWriter


@pytest.mark.parametrize("stops", [["END"], ["END", "XEN"], ["ND."], [".", "END"]])
@pytest.mark.parametrize("text", ["one two END. three", "EEND", "ENEND", "no stop here", "E", "EN", "a XEND"])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_text_ends_where_the_first_stop_begins_however_it_comes_in(stops: list[str], text: str, size: int) -> None:
    places = [text.find(stop) for stop in stops if stop in text]
    matcher = StopText(stops)
    out = ""
    for start in range(0, len(text), size):
        out += matcher.push(text[start : start + size])
        if matcher.hit:
            break
    out += matcher.finish()
    assert matcher.hit == bool(places)
    if places and size == 50:
        assert out == text[: min(places)]
    elif places:
        # What comes later is not known yet: the text ends before the stop that was complete first.
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(out) and len(out) <= ends
    else:
        assert out == text


def test_text_that_cannot_be_a_stop_is_passed_on_at_once() -> None:
    matcher = StopText(["<end>"])
    assert matcher.push("hello <") == "hello "
    assert matcher.push("b> <e") == "<b> "
    assert matcher.push("nd> rest") == ""
    assert matcher.hit


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_checkpoint)


def write(tokenizer: Tokenizer, ids: list[int], sampling: Sampling, eos: set[int]) -> tuple[list[str], AnswerWriter]:
    writer = AnswerWriter(tokenizer, sampling, eos, sampling.max_new_tokens)
    pieces = []
    for token in ids:
        pieces.append(writer.push(token))
        if writer.finish_reason:
            break
    return pieces, writer


def test_half_a_character_is_never_printed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a \U0001f469\u200d\U0001f469\u200d\U0001f467 b")
    pieces, writer = write(tokenizer, ids, Sampling(), set())
    assert len(pieces) > 6 and not any("\ufffd" in piece for piece in pieces)
    assert writer.text == "a \U0001f469\u200d\U0001f469\u200d\U0001f467 b"


def test_a_character_cut_off_by_the_length_is_shown_as_such(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0002070e")
    _, writer = write(tokenizer, ids, Sampling(max_new_tokens=len(ids) - 1), set())
    assert writer.finish_reason == "length" and writer.text == "\ufffd"


def test_the_end_token_ends_the_answer_and_is_not_text(tokenizer: Tokenizer) -> None:
    end = tokenizer.special_id("<|im_end|>")
    ids = [tokenizer.special_id("<|box_start|>"), *tokenizer.encode("(1,2)"), end, 5, 6]
    _, writer = write(tokenizer, ids, Sampling(), {end})
    assert writer.finish_reason == "stop" and writer.token_ids == ids[:-2]
    assert writer.text == "(1,2)" and writer.marked_text == "<|box_start|>(1,2)"


def test_a_stop_string_over_several_tokens_is_cut_exactly(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The answer is forty-two. And more")
    _, writer = write(tokenizer, ids, Sampling(stop=("-two",)), set())
    assert writer.finish_reason == "stop" and writer.text == "The answer is forty"


PUBLISHED = {
    "do_sample": True,
    "top_k": 1,
    "top_p": 0.001,
    "temperature": 0.01,
    "repetition_penalty": 1.05,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
}


@pytest.fixture
def published(tmp_path: Path) -> GenerationConfig:
    (tmp_path / "generation_config.json").write_text(json.dumps(PUBLISHED))
    return GenerationConfig.from_folder(tmp_path, None)


def test_the_checkpoint_decides_when_nobody_else_does(published: GenerationConfig) -> None:
    sampling = resolve(published, {"temperature": None}, {})
    assert published.eos_token_ids == {151645, 151643}
    assert (sampling.top_k, sampling.repetition_penalty, sampling.greedy) == (1, 1.05, True)


def test_flags_win_over_the_profile_and_the_profile_over_the_checkpoint(published: GenerationConfig) -> None:
    sampling = resolve(published, {"repetition_penalty": 1.2, "max_new_tokens": 7}, {"repetition_penalty": 1.0})
    assert (sampling.repetition_penalty, sampling.max_new_tokens) == (1.0, 7)


def test_a_temperature_that_is_asked_for_matters(published: GenerationConfig) -> None:
    sampling = resolve(published, {}, {"temperature": 0.7})
    assert not sampling.greedy and (sampling.top_k, sampling.top_p) == (0, 1.0)
    assert resolve(published, {}, {"temperature": 0.7, "top_k": 20}).top_k == 20
    assert resolve(published, {}, {"temperature": 0.0}).greedy


@pytest.mark.parametrize("asked", [{"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"top_p": 1.0}, {"top_k": 0}])
@pytest.mark.parametrize("by_profile", [True, False])
def test_a_filter_asked_for_alone_is_no_greedy_answer(
    published: GenerationConfig, asked: dict[str, float], by_profile: bool
) -> None:
    sampling = resolve(published, asked, {}) if by_profile else resolve(published, {}, asked)
    expected = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **asked}
    assert {name: getattr(sampling, name) for name in expected} == expected
    assert not sampling.greedy and sampling.repetition_penalty == 1.05


def test_a_filter_of_the_profile_goes_with_a_temperature_of_the_flags(published: GenerationConfig) -> None:
    sampling = resolve(published, {"top_p": 0.8}, {"temperature": 0.5})
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.8, 0)


def test_greedy_that_is_asked_for_stays_greedy(published: GenerationConfig) -> None:
    assert resolve(published, {}, {"top_k": 1}).greedy
    assert resolve(published, {"top_p": 0.9}, {"temperature": 0.0}).greedy
    assert resolve(published, {}, {"repetition_penalty": 1.2, "seed": 3}).greedy


def test_the_checkpoints_length_counts_when_nobody_else_says_one(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 77}')
    checkpoint = GenerationConfig.from_folder(tmp_path, None)
    assert resolve(checkpoint, {"max_new_tokens": None}, {}).max_new_tokens == 77
    assert resolve(checkpoint, {"max_new_tokens": 512}, {}).max_new_tokens == 512
    assert resolve(checkpoint, {"max_new_tokens": 512}, {"max_new_tokens": 3}).max_new_tokens == 3


def test_a_checkpoint_without_sampling_is_greedy(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.9}))
    assert resolve(GenerationConfig.from_folder(tmp_path, 7), {}, {}).greedy
    nothing = GenerationConfig.from_folder(tmp_path / "nowhere", 7)
    assert nothing.eos_token_ids == {7} and resolve(nothing, {}, {}).greedy


def test_a_checkpoint_that_draws_without_a_temperature_draws_at_one(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.8, "top_k": 20}))
    drawn = resolve(GenerationConfig.from_folder(tmp_path, 7), {}, {})
    assert not drawn.greedy and (drawn.temperature, drawn.top_p, drawn.top_k) == (1.0, 0.8, 20)


def test_a_checkpoint_that_draws_at_next_to_nothing_is_greedy(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 1e-6}))
    assert resolve(GenerationConfig.from_folder(tmp_path, 7), {}, {}).greedy


@pytest.mark.parametrize("content", ["{", "[]", '{"top_k": "many"}', '{"eos_token_id": "end"}', '{"top_p": true}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_folder(tmp_path, None)


def test_a_misspelt_setting_names_its_neighbour(published: GenerationConfig) -> None:
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        resolve(published, {}, {"temprature": 1.0})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": True}, "temperature must be a number, not True"),
        ({"max_new_tokens": 1.5}, "max-new-tokens must be a whole number, not 1.5"),
        ({"seed": [1]}, r"seed must be a whole number, not \[1\]"),
        ({"stop_loops": "no"}, "stop-loops must be true or false, not 'no'"),
        ({"ignore_eos": 1}, "ignore-eos must be true or false, not 1"),
        ({"stop": 5}, "stop must be texts, not 5"),
        ({"stop": [5]}, "stop must be texts"),
        ({"stop": {"a": 1}}, "stop must be texts"),
        ({"speculate": ["on"]}, "speculate must be auto, on or off"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(
    published: GenerationConfig, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(published, {}, asked)


def test_a_single_stop_text_need_not_be_in_a_list(published: GenerationConfig) -> None:
    assert resolve(published, {}, {"stop": "END"}).stop == ("END",)
    assert resolve(published, {}, {"stop": ["a", "b"], "seed": 3, "temperature": 1}).stop == ("a", "b")
