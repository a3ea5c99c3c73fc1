"""The text of an answer where something of the user's ends it: a stop string, or a special token."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.errors import UsageError
from qvl.processing.template import GROUNDING_MARKS
from qvl.processing.tokenizer import Tokenizer
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.marks import with_marks
from qvl.runtime.records import Sampling
from qvl.runtime.writer import AnswerWriter


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Engine.open(Profile(model=str(tiny_checkpoint))).processor.tokenizer


def written(tokenizer: Tokenizer, pieces: list[str], stop: tuple[str, ...]) -> AnswerWriter:
    """Pieces are text or special tokens, pushed until the answer ends."""
    writer = AnswerWriter(tokenizer, Sampling(stop=stop), {tokenizer.special["<|endoftext|>"]}, 1000)
    for piece in pieces:
        special = tokenizer.special.get(piece)
        for token in tokenizer.encode(piece) if special is None else [special]:
            if writer.finish_reason is None:
                writer.push(token)
    return writer


@pytest.mark.parametrize(
    ("marked", "text", "expected"),
    [
        ("plain", "plain", "plain"),
        ("", "", ""),
        ("a <|box_start|>(1,2),(3,4)<|box_end|> b", "a (1,2),(3,4) b", "a <|box_start|>(1,2),(3,4)<|box_end|> b"),
        ("a <|box_start|>(1,2)<|box_end|> STOP", "a (1,2)", "a <|box_start|>(1,2)<|box_end|>"),
        ("one STOP <|box_start|>x", "one ", "one "),
    ],
)
def test_an_answer_keeps_its_marks_up_to_where_its_text_ends(marked: str, text: str, expected: str) -> None:
    assert with_marks(marked, text, GROUNDING_MARKS) == expected


BOXES = ["<|box_start|>", "(1,2),(3,4)", "<|box_end|>", " and ", "<|box_start|>", "(5,6)", "<|endoftext|>"]


def test_a_special_token_can_end_an_answer(tokenizer: Tokenizer) -> None:
    writer = written(tokenizer, BOXES, ("<|box_end|>",))
    assert (writer.finish_reason, writer.text) == ("stop", "(1,2),(3,4)")
    assert writer.marked_text == "<|box_start|>(1,2),(3,4)"
    assert writer.token_ids[-1] == tokenizer.special["<|box_end|>"]


def test_a_marked_text_ends_where_the_text_does(tokenizer: Tokenizer) -> None:
    writer = written(tokenizer, BOXES, (" an",))
    assert (writer.finish_reason, writer.text) == ("stop", "(1,2),(3,4)")
    assert writer.marked_text == "<|box_start|>(1,2),(3,4)<|box_end|>"
    whole = written(tokenizer, BOXES, ("never",))
    assert whole.marked_text == "".join(BOXES[:-1]) and whole.text == "(1,2),(3,4) and (5,6)"


def test_a_stop_text_with_a_special_token_in_it_would_never_come(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"<\|box_end\|> is a token of its own and no text"):
        written(tokenizer, BOXES, ("<|box_end|> and",))
