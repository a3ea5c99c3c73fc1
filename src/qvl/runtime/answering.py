"""One answer in the making: its cache, its sampler, its text, and the step that several of them take together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qvl.errors import QvlError
from qvl.model.config import ModelConfig
from qvl.processing.prompt import Prompt
from qvl.runtime.decode import Feed, Logits, Prefilled, Runner, SequenceCache, advance
from qvl.runtime.lookup import Lookup
from qvl.runtime.records import FinishReason, Stats
from qvl.runtime.sampler import Sampler
from qvl.runtime.speculation import Speculation, StepCosts
from qvl.runtime.writer import AnswerWriter


class Drafts:
    """Where the drafts of one answer come from, and what became of them."""

    def __init__(self, lookup: Lookup, speculation: Speculation) -> None:
        self.drafted = self.accepted = 0
        self._lookup, self._speculation = lookup, speculation

    def push(self, token: int) -> None:
        """Take a token that was drawn."""
        self._lookup.push(token)

    def propose(self, rows: int, limit: int) -> list[int]:
        """Tokens to try in a step of `rows` answers, at most `limit`."""
        length = min(limit, self._speculation.length(rows))
        return self._lookup.propose(length) if length > 0 else []

    def record(self, drafted: int, accepted: int) -> None:
        """Count what became of a draft."""
        self.drafted += drafted
        self.accepted += accepted
        self._speculation.record(drafted, accepted)


class Answering:
    """Begins with a prompt that was run; `step` takes it on until it has a `finish_reason` or an `error`.

    The cache holds the prompt and every drawn token but the newest, which is fed by the next step, with a draft of what
    may follow it. From the logits behind each, tokens are drawn as if they came one at a time; at the first that is not
    the draft's, what the step put into the cache behind it is dropped.
    """

    def __init__(
        self,
        prompt: Prompt,
        prefilled: Prefilled,
        cache: SequenceCache,
        sampler: Sampler,
        writer: AnswerWriter,
        drafts: Drafts,
    ) -> None:
        self.prompt, self.prefilled, self.cache = prompt, prefilled, cache
        self.writer = writer
        self.error: QvlError | None = None
        self.drawn: list[int] = []
        self._sampler, self._drafts = sampler, drafts
        self._draft: list[int] = []
        self._text, self._told = "", 0  # text not yet asked for, tokens that were
        self._draw(prefilled.logits)
        self.begun = self.changed = time.perf_counter()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.writer.finish_reason

    def fresh(self) -> tuple[str, tuple[int, ...]]:
        """Text and tokens that came since this was last asked."""
        text, self._text = self._text, ""
        tokens = tuple(self.writer.token_ids[self._told : self.writer.certain])
        self._told = self.writer.certain
        return text, tokens

    def feed(self, rows: int) -> Feed:
        """What the next step, of `rows` answers, is to run."""
        newest, position = self.drawn[-1], self.prompt.next_position + len(self.drawn) - 1
        self._draft = self._drafts.propose(rows, self.writer.room - 1)
        return Feed(self.cache, [newest, *self._draft], position)

    def take(self, logits: Logits) -> None:
        """Draw from the logits [tokens, vocab_size] that the step gave for what was fed."""
        accepted = 0
        for number, row in enumerate(logits):
            token = self._draw(row)
            right = number < len(self._draft) and token == self._draft[number]
            accepted += right
            if not right or self.finish_reason:
                break
        self.cache.truncate(len(self.prompt) + len(self.drawn) - 1)
        if self._draft:
            self._drafts.record(len(self._draft), accepted)
        self.changed = time.perf_counter()

    def stats(self, config: ModelConfig, load_seconds: float, peak_memory: int) -> Stats:
        """The figures up to now. peak_memory: bytes, of all that the answer ran on."""
        prompt, ran, drafts = self.prompt, self.prefilled, self._drafts
        seconds = self.changed - self.begun
        later = len(self.drawn) - 1  # the first token is the prefill's
        return Stats(
            prompt_tokens=len(prompt),
            vision_tokens=prompt.vision_tokens(config),
            new_tokens=len(self.drawn),
            load_seconds=load_seconds,
            preprocess_seconds=prompt.seconds,
            vision_seconds=ran.vision_seconds,
            prefill_seconds=ran.prefill_seconds,
            time_to_first_token=prompt.seconds + ran.vision_seconds + ran.prefill_seconds,
            decode_seconds=seconds,
            tokens_per_second=later / seconds if later and seconds > 0 else 0.0,
            peak_memory_bytes=peak_memory,
            computed_tokens=len(prompt) - ran.reused_tokens,
            reused_tokens=ran.reused_tokens,
            encoded_visions=ran.encoded_visions,
            reused_visions=len(prompt.visions) - ran.encoded_visions,
            drafted_tokens=drafts.drafted,
            accepted_tokens=drafts.accepted,
        )

    def _draw(self, logits: Logits) -> int:
        token = self._sampler.draw(logits)
        self.drawn.append(token)
        self._text += self.writer.push(token)
        self._drafts.push(token)
        return token


def step(model: Runner, going: Sequence[Answering], costs: StepCosts) -> None:
    """Take every answer a step further. What goes wrong with one of them is its own `error`."""
    feeds = [answering.feed(len(going)) for answering in going]
    start = time.perf_counter()
    logits = advance(model, feeds)
    costs.record(sum(len(rows) for rows in logits), time.perf_counter() - start)
    for answering, rows in zip(going, logits, strict=True):
        try:
            answering.take(rows)
        except QvlError as error:
            answering.error = error
