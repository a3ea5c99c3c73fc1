"""Token ids equal those of transformers, under our small vocabulary and, where it is at hand, the published one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qvl.processing.tokenizer import Tokenizer
from tests.golden import load_lines, load_token_ids

# The published vocabulary is not part of the project: name a folder with its vocab.json, merges.txt and
# tokenizer_config.json to test against it.
REAL = Path(os.environ.get("QVL_REAL_TOKENIZER") or Path(__file__).parents[3] / "shared" / "tokenizer")


@pytest.fixture(scope="module", params=["small", "real"])
def vocabulary(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> tuple[str, Tokenizer]:
    if request.param == "small":
        return "small", Tokenizer.from_folder(tiny_checkpoint)
    if not (REAL / "vocab.json").is_file():
        pytest.skip("the published vocabulary is not here (QVL_REAL_TOKENIZER names its folder)")
    return "real", Tokenizer.from_folder(REAL)


def test_ids_equal_the_reference(vocabulary: tuple[str, Tokenizer]) -> None:
    name, tokenizer = vocabulary
    for line, expected in zip(load_lines(), load_token_ids(name), strict=True):
        assert tokenizer.encode(line) == expected, line


def test_streamed_text_equals_whole_text(vocabulary: tuple[str, Tokenizer]) -> None:
    _, tokenizer = vocabulary
    for line in load_lines():
        ids = tokenizer.encode(line)
        stream = tokenizer.stream()
        pieces = [stream.push([token]) for token in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in line


def test_decoding_gives_the_text_back(vocabulary: tuple[str, Tokenizer]) -> None:
    import unicodedata

    _, tokenizer = vocabulary
    for line in load_lines():
        assert tokenizer.decode(tokenizer.encode(line)) == unicodedata.normalize("NFC", line)


def test_a_character_cut_in_half_becomes_a_replacement(vocabulary: tuple[str, Tokenizer]) -> None:
    _, tokenizer = vocabulary
    ids = tokenizer.encode("\U0002070e")  # rare enough to be several tokens in any vocabulary
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]) == "\ufffd"


def test_special_tokens_typed_as_text_stay_text(vocabulary: tuple[str, Tokenizer]) -> None:
    _, tokenizer = vocabulary
    for token, token_id in tokenizer.special.items():
        ids = tokenizer.encode(f"a {token} b")
        assert token_id not in ids
        assert tokenizer.decode(ids) == f"a {token} b"


def test_special_tokens_are_dropped_or_kept_on_request(vocabulary: tuple[str, Tokenizer]) -> None:
    _, tokenizer = vocabulary
    ids = [tokenizer.special_id("<|box_start|>"), *tokenizer.encode("(1,2)"), tokenizer.special_id("<|box_end|>")]
    assert tokenizer.decode(ids) == "(1,2)"
    assert tokenizer.decode(ids, keep_special=True) == "<|box_start|>(1,2)<|box_end|>"


def test_ids_without_a_token_are_silent(vocabulary: tuple[str, Tokenizer]) -> None:
    _, tokenizer = vocabulary
    assert tokenizer.decode([10_000_000]) == ""
