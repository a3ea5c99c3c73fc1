"""The records that cross the runtime's border: what to sample, what comes back. NumPy and Paddle free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qvl.errors import QvlError
    from qvl.processing.prompt import Prompt
    from qvl.runtime.engine import Conversation

# "loop": the answer repeated itself, see `Sampling.stop_loops`.
FinishReason = Literal["stop", "length", "loop"]
Speculate = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token and when to end.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
    repetition_penalty: over prompt and answer, 1 is off. seed: None draws a fresh one.
    min_new_tokens: as long as there are fewer, the end token is not drawn; a stop string ends the answer all the same.
    stop: strings that end the answer and are not part of it; a special token, such as "<|box_end|>", by itself.
    stop_loops: end an answer that repeats the same tokens over and over, and keep one instance of them.
    speculate: draft tokens by looking up what came before, and let the model check several at once; the tokens stay
    those of the model. "on" drafts whenever there is something to look up, "auto" for greedy answers while it pays.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stop_loops: bool = False
    speculate: Speculate = "auto"

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken (top_k 1, as the published models ask, is the same)."""
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True)
class Stats:
    """Figures of one answer. Times in seconds, memory in bytes.

    new_tokens: drawn, with those that `stop_loops` took away again. computed_tokens: of the prompt, run through the
    model; reused_tokens: of the prompt, found in a session's cache. encoded_visions and reused_visions: pictures and
    clips. drafted_tokens: proposed by speculation; accepted_tokens: of these, the model's own choice too.
    """

    prompt_tokens: int
    vision_tokens: int
    new_tokens: int
    load_seconds: float
    preprocess_seconds: float
    vision_seconds: float
    prefill_seconds: float
    time_to_first_token: float
    decode_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    computed_tokens: int = 0
    reused_tokens: int = 0
    encoded_visions: int = 0
    reused_visions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer as it grows. The last one has `finish_reason` and `stats`.

    text: whole characters only, special tokens left out; may be empty.
    token_ids: the tokens that came since the chunk before, special ones included; several when a draft was accepted.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer: the chunks put together. `marked_text` keeps the special tokens, such as grounding marks."""

    text: str
    marked_text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats


@dataclass(frozen=True)
class Request:
    """One conversation for `Engine.serve`. key: whatever its answer is to be known by."""

    key: object
    conversation: Conversation
    sampling: Sampling


@dataclass(frozen=True)
class Finished:
    """What became of a request: an answer and the prompt it was given, or the error that ended it."""

    key: object
    answer: Answer | None
    prompt: Prompt | None
    error: QvlError | None
