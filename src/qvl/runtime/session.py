"""A conversation's memory: the cache of what was run last, of which the next question takes what it can use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qvl.errors import UsageError
from qvl.model.config import ModelConfig
from qvl.processing.prompt import Prompt
from qvl.runtime.answering import Answering
from qvl.runtime.decode import SequenceCache
from qvl.runtime.records import Chunk, Sampling

if TYPE_CHECKING:
    from qvl.runtime.engine import Conversation, Engine


@dataclass(frozen=True, eq=False)
class _Held:
    """What the cache holds: ids [n], positions [3, n], and where which picture or clip begins, by its content."""

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    visions: tuple[tuple[int, bytes], ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


_NOTHING = _Held(np.zeros(0, np.int64), np.zeros((3, 0), np.int64))


class Session:
    """Answers like `Engine.stream`, token for token, but runs only what the call before did not.

    Keeps one sequence's keys and values between calls. The tokens of a prompt are taken from there up to the first that
    differs in id, in position, or in the picture it belongs to, whatever was said before: a further question, another
    try, a shorter or an edited conversation need no call of their own. Not for several threads at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache: SequenceCache | None = None
        self._held = _NOTHING
        self._answering: Answering | None = None
        self._written = 0  # tokens that the cache has held at most, in the memory it has now
        self._turn = 0

    @property
    def tokens(self) -> int:
        """How many tokens are held."""
        return len(self._current())

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._turn += 1
        self._answering, self._cache, self._held, self._written = None, None, _NOTHING, 0

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> Iterator[Chunk]:
        """Answer as `Engine.stream` does. May be closed or interrupted at any point: what was run stays good.

        Raises UsageError when it is gone on with after a later call was begun.
        """
        engine = self._engine
        prompt = conversation if isinstance(conversation, Prompt) else engine.prompt(conversation)
        settings = sampling or engine.sampling()
        self._settle()
        self._turn += 1
        turn = self._turn
        cache = self._prepare(prompt, engine.room(prompt, settings))
        self._answering = answering = engine.begin(prompt, settings, cache)
        del prompt  # with its pixels
        for chunk in engine.chunks(answering):
            yield chunk
            if chunk.finish_reason is None and self._turn != turn:
                raise UsageError("this answer was left for another one; ask again")

    def check_memory(self, prompt: Prompt, sampling: Sampling) -> None:
        """As `Engine.check_memory`, with what this session holds taken into account."""
        cache = self._cache
        if cache is None:
            self._engine.check_memory(prompt, sampling)
            return
        # Of what was set aside for it, the machine has given no more than was ever written to; the rest looks free.
        written = max(self._written, len(cache))
        wanted = min(len(prompt) + self._engine.room(prompt, sampling), cache.capacity)
        promised = cache.untouched * max(0, wanted - written) // max(1, cache.capacity - len(cache))
        self._engine.check_memory(prompt, sampling, promised=promised, held=(self._common(prompt), cache.capacity))

    def _common(self, prompt: Prompt) -> int:
        """How many tokens the prompt can keep. The last one always is run, for the logits behind it."""
        return min(common_prefix(self._current(), prompt, self._engine.config), len(prompt) - 1)

    def _prepare(self, prompt: Prompt, room: int) -> SequenceCache:
        """The cache with what of the prompt it can keep, and room for the rest and the answer."""
        common = self._common(prompt)
        if self._cache is None:
            self._cache = self._engine.cache(len(prompt) + room)
        self._written = max(self._written, len(self._cache))
        self._cache.truncate(common)
        self._held = _first(self._held, common)
        if len(prompt) + room > self._cache.capacity:
            with self._engine.computing():
                self._cache.reserve(len(prompt) + room)
            self._written = common
        # From here on it is this prompt that is being written; what of it is there is counted by `_current`.
        self._held = _holding(prompt, self._engine.config)
        return self._cache

    def _settle(self) -> None:
        self._held, self._answering = self._current(), None

    def _current(self) -> _Held:
        """What the last call has left in the cache, wherever it was broken off."""
        held = self._held if self._answering is None else _continued(self._held, self._answering)
        have = 0 if self._cache is None else len(self._cache)
        return _first(held, min(have, len(held)))


def common_prefix(held: _Held, prompt: Prompt, config: ModelConfig) -> int:
    """How many tokens at the start of a prompt are those held."""
    n = min(len(held), len(prompt))
    differs = (held.input_ids[:n] != prompt.input_ids[:n]) | np.any(
        held.position_ids[:, :n] != prompt.position_ids[:, :n], axis=0
    )
    common = int(np.argmax(differs)) if differs.any() else n
    known = dict(held.visions)
    for start, vision in zip(prompt.vision_starts(config), prompt.visions, strict=True):
        if start >= common:
            break
        if known.get(start) != vision.digest:
            return start
    return common


def _holding(prompt: Prompt, config: ModelConfig) -> _Held:
    starts = prompt.vision_starts(config)
    visions = tuple((start, vision.digest) for start, vision in zip(starts, prompt.visions, strict=True))
    return _Held(prompt.input_ids, prompt.position_ids, visions)


def _continued(held: _Held, answering: Answering) -> _Held:
    """With the tokens of an answer but the newest, which the model has not been given yet."""
    ids = np.asarray(answering.drawn[:-1], np.int64)
    positions = np.broadcast_to(answering.prompt.next_position + np.arange(len(ids)), (3, len(ids)))
    return _Held(
        np.concatenate([held.input_ids, ids]), np.concatenate([held.position_ids, positions], axis=1), held.visions
    )


def _first(held: _Held, tokens: int) -> _Held:
    visions = tuple(entry for entry in held.visions if entry[0] < tokens)
    return _Held(held.input_ids[:tokens], held.position_ids[:, :tokens], visions)
