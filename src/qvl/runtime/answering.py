"""One answer in the making: its cache, its sampler, its text, and the step that several of them take together."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import paddle

from qvl import ops
from qvl.model.config import ModelConfig
from qvl.processing.prompt import Prompt
from qvl.runtime.decode import Feed, Logits, Prefilled, Runner, SequenceCache, advance_together
from qvl.runtime.graph import StepGraphs
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
        self.error: Exception | None = None
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

    def rewind(self) -> None:
        """Be as before a step that failed: of what it has put into the cache nothing counts."""
        self.cache.truncate(len(self.prompt) + len(self.drawn) - 1)

    def plan(self) -> ops.Draw:
        """How the first row of the next step's logits is to be drawn from."""
        return self._sampler.plan()

    def take(self, logits: Logits | paddle.Tensor, drawn: Sequence[int | None] = ()) -> None:
        """Draw from the logits [tokens, vocab_size] that the step gave for what was fed.

        drawn: what came of the first rows already, as planned.
        """
        accepted = 0
        for number, row in enumerate(logits):
            token = self._push(self._sampler.settle(drawn[number])) if number < len(drawn) else self._draw(row)
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

    def _draw(self, logits: Logits | paddle.Tensor) -> int:
        return self._push(self._sampler.draw(logits))

    def _push(self, token: int) -> int:
        self.drawn.append(token)
        self._text += self.writer.push(token)
        self._drafts.push(token)
        return token


def step(model: Runner, going: Sequence[Answering], costs: StepCosts, graphs: StepGraphs | None = None) -> None:
    """Take every answer a step further. What goes wrong with one of them is its own `error`.

    Raises what goes wrong with all of them; then they are as before.
    """
    feeds = [answering.feed(len(going)) for answering in going]
    lengths = [len(feed.token_ids) for feed in feeds]
    start = time.perf_counter()
    try:
        logits = graphs.logits(feeds) if graphs is not None else None
        if logits is None:
            logits = advance_together(model, feeds)
        rows, drawn = _drawn(logits, lengths, going)
    except Exception:
        for answering in going:
            answering.rewind()
        raise
    costs.record(sum(lengths), time.perf_counter() - start)
    end = 0
    for number, (answering, length) in enumerate(zip(going, lengths, strict=True)):
        begin, end = end, end + length
        try:
            answering.take(rows[begin:end], drawn[number : number + 1])
        except Exception as error:
            answering.error = error


def _drawn(
    logits: paddle.Tensor, lengths: Sequence[int], going: Sequence[Answering]
) -> tuple[Logits | paddle.Tensor, list[int | None]]:
    """The rows to draw from; where they stay on a GPU, with what came of the first row of each answer."""
    if not ops.samples_there(logits):
        return logits.numpy(), []
    first = logits
    if len(lengths) < logits.shape[0]:
        first = paddle.gather(logits, paddle.to_tensor(np.cumsum([0, *lengths[:-1]])))
    return logits, ops.sample_rows(first, [answering.plan() for answering in going])
