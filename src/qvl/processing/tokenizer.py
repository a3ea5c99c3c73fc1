"""Text to token ids and back, on the `tokenizers` library.

Text and special tokens never mix: `encode` treats everything as plain text, so that `<|im_end|>` typed by a user stays
the ten characters it is, and special tokens are looked up by name. Decoding works on bytes, so that a stream can hold
back half a character and still give exactly what decoding the whole gives.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from qvl.errors import CheckpointError, UsageError
from qvl.model.config import SPECIAL_TOKENS, SPLIT_PATTERN, byte_alphabet


class Tokenizer:
    """The vocabulary of one checkpoint. `special` maps the text of each special token to its id."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # What a training run had set and saved with the vocabulary would cut prompts without a word.
        backend.no_truncation()
        backend.no_padding()
        # Special tokens in the text are then not recognised: they are encoded letter by letter.
        backend.encode_special_tokens = True
        self.special: dict[str, int] = {
            token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self._special_ids = frozenset(self.special.values())
        self._added: dict[int, str] = {
            token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()
        }
        self._bytes: dict[int, bytes] = {}

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer:
        """Load `tokenizer.json`, or `vocab.json` with `merges.txt`.

        Beside the latter, `tokenizer_config.json` or `added_tokens.json` tells the added tokens; without them those of
        Qwen2-VL follow the vocabulary. Raises CheckpointError naming the missing or damaged file.
        """
        path = folder / "tokenizer.json"
        try:
            if path.is_file():
                return Tokenizer(Backend.from_file(str(path)))
            path = folder / "vocab.json"
            return Tokenizer(_from_vocabulary(folder))
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise CheckpointError(f"{folder}: no tokenizer.json, and {missing} is missing too") from None
        except CheckpointError:
            raise
        except Exception as error:  # the library raises bare Exception for damaged files
            raise CheckpointError(f"{path}: not a tokenizer qvl can read ({error})") from None

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; nothing in it becomes a special token. Raises UsageError for half a surrogate pair."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError):
            lone = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
            if lone is None:
                raise
            raise UsageError(f"the text has a lone surrogate (U+{ord(lone):04X}), so it is not valid Unicode") from None

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises CheckpointError when the vocabulary lacks it."""
        try:
            return self.special[token]
        except KeyError:
            raise CheckpointError(f"the tokenizer has no special token {token}, which Qwen2-VL needs") from None

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Ids to text. Bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream(keep_special=keep_special)
        return stream.push(ids) + stream.finish()

    def stream(self, *, keep_special: bool = False) -> TextStream:
        """Decode piece by piece; the pieces put together are what `decode` gives."""
        return TextStream(self, keep_special)

    def token_bytes(self, token_id: int, keep_special: bool) -> bytes:
        """The bytes a token stands for: b"" for a dropped special one and for ids without a token."""
        if token_id in self._special_ids and not keep_special:
            return b""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._look_up(token_id)
        return self._bytes[token_id]

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        table = _byte_of_character()
        return bytes(table[character] for character in token)


class TextStream:
    """Turns ids into text as they come, holding back an unfinished character."""

    def __init__(self, tokenizer: Tokenizer, keep_special: bool) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters completed by these ids."""
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(i, self._keep_special) for i in ids))

    def finish(self) -> str:
        """What was held back: U+FFFD for a character that never got whole."""
        return self._decoder.decode(b"", final=True)


_byte_of_character = lru_cache(maxsize=1)(byte_alphabet)


def _from_vocabulary(folder: Path) -> Backend:
    vocab, merges = _read_vocabulary(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    # The library numbers added tokens on from the end; one that the vocabulary has keeps its id, which may leave a gap.
    # Nothing merges to it, so text stays what it was.
    added = _added_tokens(folder, max(vocab.values()) + 1)
    token_of = {token_id: token for token, token_id in vocab.items()}
    for token, token_id in added:
        if vocab.get(token.content, token_id) != token_id or token_of.get(token_id, token.content) != token.content:
            raise CheckpointError(f"{folder}: the added token {token.content} and vocab.json disagree about {token_id}")
        vocab[token.content], token_of[token_id] = token_id, token.content
    try:
        backend = Backend(BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{folder / 'merges.txt'}: does not go with vocab.json ({error})") from None
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for token, _ in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return backend


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocab = _read_json(path)
    if not vocab or not all(isinstance(token_id, int) and token_id >= 0 for token_id in vocab.values()):
        raise CheckpointError(f"{path}: not a vocabulary, which gives each token its number")
    return vocab


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        left, space, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right or not space:
            raise CheckpointError(f"{path}: line {number} is not two tokens")
        merges.append((left, right))
    return merges


def _added_tokens(folder: Path, first_free: int) -> list[tuple[AddedToken, int]]:
    """Added tokens and their ids, in order: as tokenizer_config.json or added_tokens.json says, or else Qwen2-VL's."""
    path = folder / "tokenizer_config.json"
    decoder = _read_json(path).get("added_tokens_decoder") if path.is_file() else None
    try:
        if decoder:
            found = [
                (str(entry["content"]), int(token_id), bool(entry.get("special", True)))
                for token_id, entry in decoder.items()
            ]
        elif (path := folder / "added_tokens.json").is_file():
            found = [(text, int(token_id), text in SPECIAL_TOKENS) for text, token_id in _read_json(path).items()]
        else:
            found = [(text, first_free + offset, True) for offset, text in enumerate(SPECIAL_TOKENS)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its added tokens are damaged ({error!r})") from None
    found.sort(key=lambda item: item[1])
    return [(AddedToken(text, normalized=False, special=special), token_id) for text, token_id, special in found]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object was expected")
    return data
