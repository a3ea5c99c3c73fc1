"""One answer in the making: its cache, its sampler, its text, and the step that several of them take together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qvl.errors import QvlError
from qvl.model.config import ModelConfig
from qvl.model.qwen2_vl import Qwen2VL
from qvl.processing.prompt import Prompt
from qvl.runtime import memory
from qvl.runtime.cache import KVCache
from qvl.runtime.decode import Feed, Logits, Prefilled, advance
from qvl.runtime.records import FinishReason, Stats
from qvl.runtime.sampler import Sampler
from qvl.runtime.writer import AnswerWriter


class Answering:
    """Begins with a prompt that was run; `step` takes it on until it has a `finish_reason` or an `error`.

    The cache holds the prompt and every drawn token but the newest, which is fed by the next step.
    """

    def __init__(
        self, prompt: Prompt, prefilled: Prefilled, cache: KVCache, sampler: Sampler, writer: AnswerWriter
    ) -> None:
        self.prompt, self.prefilled, self.cache = prompt, prefilled, cache
        self.writer = writer
        self.error: QvlError | None = None
        self.drawn: list[int] = []
        self.drafted = self.accepted = 0
        self.begun = self.changed = time.perf_counter()
        self._sampler = sampler
        self._taken_tokens = 0
        self._text = ""
        self._take(prefilled.logits)
        self.begun = self.changed = time.perf_counter()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.writer.finish_reason

    @property
    def decode_seconds(self) -> float:
        """From the first token to the newest."""
        return self.changed - self.begun

    def fresh(self) -> tuple[str, tuple[int, ...]]:
        """Text and tokens that came since this was last asked."""
        text, self._text = self._text, ""
        tokens = tuple(self.writer.token_ids[self._taken_tokens :])
        self._taken_tokens = len(self.writer.token_ids)
        return text, tokens

    def feed(self) -> Feed:
        """What the next step is to run."""
        return Feed(self.cache, [self.drawn[-1]], self.prompt.next_position + len(self.drawn) - 1)

    def take(self, logits: Logits) -> None:
        """Draw from what the step gave."""
        self._take(logits[0])
        self.changed = time.perf_counter()

    def stats(self, config: ModelConfig, load_seconds: float) -> Stats:
        """The figures up to now."""
        prompt, ran = self.prompt, self.prefilled
        later = len(self.drawn) - 1  # the first token is the prefill's
        return Stats(
            prompt_tokens=len(prompt),
            vision_tokens=sum(v.tokens(config.vision_config) for v in prompt.visions),
            new_tokens=len(self.drawn),
            load_seconds=load_seconds,
            preprocess_seconds=prompt.seconds,
            vision_seconds=ran.vision_seconds,
            prefill_seconds=ran.prefill_seconds,
            time_to_first_token=prompt.seconds + ran.vision_seconds + ran.prefill_seconds,
            decode_seconds=self.decode_seconds,
            tokens_per_second=later / self.decode_seconds if later and self.decode_seconds > 0 else 0.0,
            peak_memory_bytes=memory.peak_bytes(),
            computed_tokens=len(prompt) - ran.reused_tokens,
            reused_tokens=ran.reused_tokens,
            encoded_visions=ran.encoded_visions,
            reused_visions=len(prompt.visions) - ran.encoded_visions,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    def _take(self, logits: Logits) -> int:
        token = self._sampler.draw(logits)
        self.drawn.append(token)
        self._text += self.writer.push(token)
        return token


def step(model: Qwen2VL, going: Sequence[Answering]) -> None:
    """Take every answer a step further. What goes wrong with one of them is its own `error`."""
    logits = advance(model, [answering.feed() for answering in going])
    for answering, rows in zip(going, logits, strict=True):
        try:
            answering.take(rows)
        except QvlError as error:
            answering.error = error
