"""Token ids to the text of an answer as it grows, and when it ends."""

from __future__ import annotations

from collections.abc import Collection

from qvl.errors import UsageError
from qvl.processing.tokenizer import Tokenizer
from qvl.runtime.loops import LoopWatch
from qvl.runtime.marks import with_marks
from qvl.runtime.records import FinishReason, Sampling
from qvl.runtime.stop import StopText


class AnswerWriter:
    """One answer. Push tokens until `finish_reason` is set. A stop string may be a special token, such as a mark.

    Raises UsageError for one that has a special token beside other text: in text there are none.

    token_ids: those pushed, less what a loop repeated. certain: how many of them will stay, whatever comes.
    text: of the tokens that are certain, as far as it can be no part of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, eos_ids: Collection[int], max_new_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.certain = 0
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream()
        special = tokenizer.special
        self._stop = StopText([stop for stop in sampling.stop if stop not in special])
        self._ends_it = frozenset(eos_ids) | {special[stop] for stop in sampling.stop if stop in special}
        for stop in sampling.stop:
            if stop not in special and (inside := next((name for name in special if name in stop), None)):
                raise UsageError(f"stop text {stop!r}: {inside} is a token of its own and no text; stop at it alone")
        self._min_new_tokens = sampling.min_new_tokens
        self._max_new_tokens = max_new_tokens
        self._watch = LoopWatch() if sampling.stop_loops else None
        self._whole = ""  # with the text of tokens that are not certain
        self._ends: list[int] = []  # how much of it there was after each token

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain."""
        self.token_ids.append(token)
        self._whole += self._stop.push(self._decoder.push([token]))
        self._ends.append(len(self._whole))
        if self._stop.hit or token in self._ends_it:
            return self._finish("stop")
        if self._watch is not None:
            self._watch.push(token)
            if self._watch.end is not None and len(self.token_ids) >= self._min_new_tokens:
                return self._cut(self._watch.end)
        if len(self.token_ids) >= self._max_new_tokens:
            return self._finish("length")
        self.certain = len(self.token_ids) if self._watch is None else self._watch.certain
        return self._release(self._whole[: self._ends[self.certain - 1]] if self.certain else "")

    @property
    def room(self) -> int:
        """How many tokens may still be pushed."""
        return self._max_new_tokens - len(self.token_ids)

    @property
    def marked_text(self) -> str:
        """The answer with its special tokens, without the one or the stop string that ends it."""
        ids = self.token_ids
        if ids and ids[-1] in self._ends_it:
            ids = ids[:-1]
        marked = self._tokenizer.decode(ids, keep_special=True)
        return with_marks(marked, self.text, self._tokenizer.special) if self._stop.hit else marked

    def _finish(self, reason: FinishReason) -> str:
        """No more tokens come. A stop string completed by what was held back still ends the text before it."""
        self._whole += self._stop.push(self._decoder.finish())
        self._whole += self._stop.finish()
        self.finish_reason, self.certain = reason, len(self.token_ids)
        return self._release(self._whole)

    def _cut(self, end: int) -> str:
        """Keep the tokens up to the end of a loop's first copy, and those that complete its last character."""
        for kept in range(end, len(self.token_ids) + 1):
            decoder = self._tokenizer.stream()
            text, half = decoder.push(self.token_ids[:kept]), decoder.finish()
            if not half:
                break
        self.token_ids = self.token_ids[:kept]
        self.finish_reason, self.certain = "loop", kept
        return self._release(text + half)

    def _release(self, text: str) -> str:
        new, self.text = text[len(self.text) :], text
        return new
