"""A batch gives each row what it gives alone, and nothing of one prompt is left for the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from qvl.profile import Profile
from qvl.runtime import decode
from qvl.runtime.decode import encode_vision, prompt_inputs
from qvl.runtime.engine import Engine
from qvl.runtime.records import Request, Sampling
from tests.golden import load_case
from tests.golden.cases import CASES
from tests.parity.support import GREEDY, messages_of

MIXED = [case for case in CASES if case.checkpoints[0] == "tiny" and not case.add_vision_id]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))


def test_rows_of_a_batch_answer_as_they_do_alone(engine: Engine) -> None:
    prompts = [engine.prompt(messages_of(case)) for case in MIXED]
    assert len({len(prompt) for prompt in prompts}) > 10, "the rows are meant to differ in length"
    answers = engine.generate_batch(prompts, GREEDY)
    for case, answer in zip(MIXED, answers, strict=True):
        assert list(answer.token_ids) == load_case(case.name)["tokens"].tolist(), case.name


@pytest.mark.parametrize("batch_size", [1, 5])
def test_requests_that_come_and_go_answer_as_they_do_alone(engine: Engine, batch_size: int) -> None:
    """Pictures and clips are read by a thread while others are answered."""
    requests = [Request(case.name, messages_of(case), GREEDY) for case in MIXED]
    finished = list(engine.serve(iter(requests), batch_size=batch_size))
    assert {result.key for result in finished} == {case.name for case in MIXED} and len(finished) == len(MIXED)
    for result in finished:
        assert result.answer is not None
        assert list(result.answer.token_ids) == load_case(str(result.key))["tokens"].tolist(), result.key


def test_rows_that_end_early_leave_the_others_alone(engine: Engine) -> None:
    prompts = [engine.prompt(messages_of(case)) for case in MIXED[:4]]
    alone = [engine.generate(prompt, GREEDY) for prompt in prompts]
    stop = alone[1].text[4:7]
    sampling = replace(GREEDY, stop=(stop,))
    together = engine.generate_batch(prompts, sampling)
    assert [answer.text for answer in together] == [engine.generate(prompt, sampling).text for prompt in prompts]
    assert together[1].finish_reason == "stop"
    assert "length" in {answer.finish_reason for answer in together}


def test_a_second_prompt_is_not_changed_by_the_first(engine: Engine) -> None:
    by_name = {case.name: case for case in MIXED}
    for name in ("video", "image-tall", "text", "image-tall", "video"):
        answer = engine.generate(messages_of(by_name[name]), GREEDY)
        assert list(answer.token_ids) == load_case(name)["tokens"].tolist()


def test_two_sequences_in_one_row_do_not_see_each_other(engine: Engine) -> None:
    """What packing in training and batching in inference both rest on."""
    first, second = (engine.prompt(messages_of(case)) for case in (MIXED[0], MIXED[1]))
    with paddle.no_grad():
        alone = [engine.model(prompt_inputs(engine.config, p, None, last_only=False)).numpy() for p in (first, second)]
        inputs = prompt_inputs(engine.config, first, None, last_only=False)
        packed = replace(
            inputs,
            input_ids=paddle.to_tensor(np.concatenate([first.input_ids, second.input_ids])),
            position_ids=paddle.to_tensor(np.concatenate([first.position_ids, second.position_ids], axis=1)),
            lengths=[len(first), len(second)],
        )
        together = engine.model(packed).numpy()
    expected = np.concatenate(alone)
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_streaming_equals_generating(engine: Engine) -> None:
    prompt = engine.prompt(messages_of(MIXED[2]))
    chunks = list(engine.stream(prompt, GREEDY))
    answer = engine.generate(prompt, GREEDY)
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(answer.token_ids)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].stats is not None and chunks[-1].stats.new_tokens == GREEDY.max_new_tokens


def test_the_same_seed_draws_the_same_answer_and_another_seed_another(engine: Engine) -> None:
    prompt = engine.prompt(messages_of(MIXED[2]))
    texts = [engine.generate(prompt, Sampling(24, temperature=1.0, seed=seed)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_clip_encoded_in_groups_of_slices_gives_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in MIXED if case.name == "video")
    prompt = engine.prompt(messages_of(case))
    assert prompt.visions[0].grid_thw[0] >= 2
    with paddle.no_grad():
        whole = encode_vision(engine.model, prompt).numpy()
        monkeypatch.setattr(decode, "PATCHES_AT_ONCE", 1)
        parts = encode_vision(engine.model, prompt).numpy()
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.ptp(whole))
