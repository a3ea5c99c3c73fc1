"""What a conversation becomes, and which of its tokens training learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvl.messages import Image, Message
from qvl.model.config import ModelConfig
from qvl.processing.processor import IGNORED, Processor
from qvl.processing.template import Layout
from qvl.processing.tokenizer import Tokenizer

PICTURE = np.full((56, 56, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return Processor(ModelConfig.from_folder(tiny_checkpoint), Tokenizer.from_folder(tiny_checkpoint))


def learnt(processor: Processor, messages: list[Message]) -> str:
    labels = processor.example(messages).labels
    return processor.tokenizer.decode(labels[labels != IGNORED].tolist(), keep_special=True)


DIALOGUE = [
    Message.of("user", Image(PICTURE), "What is this?"),
    Message.of("assistant", "A cat."),
    Message.of("user", "Where?"),
    Message.of("assistant", "<|box_start|>(1,2),(3,4)<|box_end|> here"),
]


def test_each_reply_and_the_token_that_closes_it_are_learnt(processor: Processor) -> None:
    assert learnt(processor, DIALOGUE) == "A cat.<|im_end|><|box_start|>(1,2),(3,4)<|box_end|> here<|im_end|>"


def test_a_reply_can_be_left_out(processor: Processor) -> None:
    messages = [DIALOGUE[0], Message("assistant", DIALOGUE[1].parts, loss=False), *DIALOGUE[2:]]
    assert learnt(processor, messages) == "<|box_start|>(1,2),(3,4)<|box_end|> here<|im_end|>"
    whole, part = (processor.example(m).prompt.input_ids for m in (DIALOGUE, messages))
    assert whole.tolist() == part.tolist()


def test_an_example_is_the_prompt_of_inference_with_the_reply_behind_it(processor: Processor) -> None:
    for turns in (2, 4):
        example = processor.example(DIALOGUE[:turns])
        prompt = processor.prompt(DIALOGUE[: turns - 1])
        start = len(prompt)
        assert example.prompt.input_ids[:start].tolist() == prompt.input_ids.tolist()
        assert example.prompt.position_ids[:, :start].tolist() == prompt.position_ids.tolist()
        assert example.prompt.position_ids[:, start].tolist() == [prompt.next_position] * 3
        assert example.labels[start - 1] == IGNORED and example.labels[start] == example.prompt.input_ids[start]


def test_a_reply_that_begins_with_a_newline_is_learnt_as_it_will_be_generated(processor: Processor) -> None:
    messages = [Message.of("user", "Go"), Message.of("assistant", "\n\nyes")]
    start = len(processor.prompt(messages[:1]))
    expected = processor.tokenizer.encode("\n\nyes")
    assert processor.example(messages).prompt.input_ids[start : start + len(expected)].tolist() == expected


def test_a_base_model_learns_the_bare_reply(tiny_checkpoint: Path) -> None:
    config, tokenizer = ModelConfig.from_folder(tiny_checkpoint), Tokenizer.from_folder(tiny_checkpoint)
    processor = Processor(config, tokenizer, layout=Layout("none"))
    messages = [Message.of("user", "One, two,"), Message.of("assistant", " three")]
    assert learnt(processor, messages) == " three"
    assert tokenizer.decode(processor.example(messages).prompt.input_ids.tolist()) == "One, two, three"
