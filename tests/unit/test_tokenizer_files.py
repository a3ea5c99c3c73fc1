"""Folders without tokenizer.json: where the added tokens come from, and damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qvl.errors import CheckpointError, UsageError
from qvl.model.config import SPECIAL_TOKENS
from qvl.processing.tokenizer import Tokenizer

TEXT = "A cat, 猫, \U0001f469\u200d\U0001f467 and <|im_end|>"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """vocab.json and merges.txt of the tiny model, and nothing else."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(tiny_checkpoint / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_checkpoint)


def test_a_bare_vocabulary_gets_qwens_special_tokens_behind_it(folder: Path, whole: Tokenizer) -> None:
    size = len(json.loads((folder / "vocab.json").read_text()))
    tokenizer = Tokenizer.from_folder(folder)
    assert [tokenizer.special_id(token) for token in SPECIAL_TOKENS] == list(range(size, size + 14))
    assert tokenizer.special == whole.special
    assert tokenizer.encode(TEXT) == whole.encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_what_a_training_run_left_in_the_file_cuts_no_prompt(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stored = json.loads((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).encode(TEXT) == Tokenizer.from_folder(tiny_checkpoint).encode(TEXT)


def test_the_published_vocabulary_would_end_where_its_special_tokens_begin(folder: Path) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab |= {f"Ġ~{number}": number for number in range(len(vocab), 151643)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    tokenizer = Tokenizer.from_folder(folder)
    names = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>")
    assert [tokenizer.special_id(name) for name in names] == [151643, 151645, 151652, 151655, 151656]


def test_added_tokens_json_is_read(folder: Path, whole: Tokenizer) -> None:
    added = {**whole.special, "<tool>": 1020}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special == whole.special
    assert tokenizer.decode([1020, 998]) == "<tool>"  # added, but nothing special


def test_added_tokens_keep_their_ids_across_a_gap(folder: Path, whole: Tokenizer) -> None:
    ids = {token: 2000 + 3 * number for number, token in enumerate(SPECIAL_TOKENS)}
    decoder = {str(token_id): {"content": token, "special": True} for token, token_id in ids.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special == ids
    assert tokenizer.encode(TEXT) == whole.encode(TEXT)
    assert tokenizer.decode([2003, 2004], keep_special=True) == "<|im_start|>"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.json", "{", "cannot be read as JSON"),
        ("vocab.json", "[]", "a JSON object was expected"),
        ("vocab.json", '{"a": "b"}', "not a vocabulary"),
        ("merges.txt", "a b\nc\n", "line 2"),
        ("merges.txt", "zz zz\n", "does not go with vocab.json"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added tokens are damaged"),
        ("added_tokens.json", '{"<|im_end|>": null}', "added tokens are damaged"),
        ("tokenizer.json", "{", "not a tokenizer"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str, words: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        Tokenizer.from_folder(folder)


def test_two_files_that_disagree_are_told(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 5}')
    with pytest.raises(CheckpointError, match="disagree about 5"):
        Tokenizer.from_folder(folder)


def test_half_a_surrogate_pair_is_a_wrong_request(whole: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"lone surrogate \(U\+D83D\)"):
        whole.encode("a \ud83d b")
