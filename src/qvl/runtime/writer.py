"""Token ids to the text of an answer as it grows, and when it ends."""

from __future__ import annotations

from collections.abc import Collection

from qvl.processing.tokenizer import Tokenizer
from qvl.runtime.records import FinishReason, Sampling
from qvl.runtime.stop import StopText


class AnswerWriter:
    """One answer. Push tokens until `finish_reason` is set."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, eos_ids: Collection[int], max_new_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream()
        self._stop = StopText(sampling.stop)
        self._eos_ids = eos_ids
        self._max_new_tokens = max_new_tokens

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        self.token_ids.append(token)
        new = self._stop.push(self._decoder.push([token]))
        if self._stop.hit or token in self._eos_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            new += self.close()
        self.text += new
        return new

    def close(self) -> str:
        """What was held back, when no more tokens come. A stop string completed here still ends the text before it."""
        new = self._stop.push(self._decoder.finish())
        return new + self._stop.finish()

    @property
    def marked_text(self) -> str:
        """The answer with its special tokens, without the one that ends it."""
        ids = self.token_ids
        if ids and ids[-1] in self._eos_ids:
            ids = ids[:-1]
        return self._tokenizer.decode(ids, keep_special=True)
