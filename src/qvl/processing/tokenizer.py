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

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from qvl.errors import CheckpointError

# How Qwen2 splits text before byte-pair merging (published in its tokenizer.json).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """The vocabulary of one checkpoint. `special` maps the text of each special token to its id."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
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
        """Load `tokenizer.json`, or `vocab.json` with `merges.txt` and `tokenizer_config.json`.

        Raises CheckpointError naming the missing or damaged file.
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
        except Exception as error:  # the library raises bare Exception for damaged files
            raise CheckpointError(f"{path}: not a tokenizer qvl can read ({error})") from None

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; nothing in it becomes a special token."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

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


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the rest is moved to U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


def _from_vocabulary(folder: Path) -> Backend:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab, merges):
        path.open("rb").close()
    backend = Backend(BPE.from_file(str(vocab), str(merges)))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added: dict[str, dict[str, object]] = config["added_tokens_decoder"]
    for token_id, entry in sorted(added.items(), key=lambda item: int(item[0])):
        content = str(entry["content"])
        token = AddedToken(content, normalized=False, special=bool(entry.get("special", True)))
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(content) != int(token_id):
            raise ValueError(f"{content} has id {backend.token_to_id(content)}, tokenizer_config.json says {token_id}")
    return backend
