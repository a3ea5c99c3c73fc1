"""The model behind a conversation: an engine, its session, and what was read of pictures and clips."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from qvl.cli.infer import chosen_profile, load_weights, open_engine
from qvl.cli.options import MediaOptions, ModelOptions
from qvl.messages import Image, Message, Video
from qvl.processing.processor import Processor
from qvl.processing.prompt import Prompt, Vision
from qvl.processing.template import GROUNDING_MARKS, Slot, Words
from qvl.processing.template import render as lay_out
from qvl.profile import list_profiles
from qvl.runtime.marks import with_marks

if TYPE_CHECKING:
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import Chunk, Sampling
    from qvl.runtime.session import Session

# Patches of this much stay in memory, so that a picture is not decoded again at every turn. A clip of the greatest
# length that Qwen2-VL takes is 450 MiB.
REMEMBERED_BYTES = 512 << 20


class Memory:
    """Pictures and clips as patches, the least recently used forgotten first; how many tokens each has stays."""

    def __init__(self, limit_bytes: int = REMEMBERED_BYTES) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[Image | Video, Vision] = OrderedDict()
        self.tokens: dict[Image | Video, int] = {}

    def get(self, part: Image | Video) -> Vision | None:
        found = self._held.get(part)
        if found is not None:
            self._held.move_to_end(part)
        return found

    def put(self, part: Image | Video, vision: Vision) -> None:
        self._held[part] = vision
        while len(self._held) > 1 and sum(held.patches.nbytes for held in self._held.values()) > self._limit:
            self._held.popitem(last=False)


@dataclass(frozen=True)
class RememberingProcessor(Processor):
    """A processor that reads a picture or clip once."""

    memory: Memory = field(default_factory=Memory)

    def vision(self, part: Image | Video) -> Vision:
        vision = self.memory.get(part)
        if vision is None:
            vision = super().vision(part)
            self.memory.put(part, vision)
            self.memory.tokens[part] = vision.tokens(self.config.vision_config)
        return vision

    def count(self, messages: Sequence[Message], *, whole: bool) -> int:
        """Tokens of a conversation; whole: it is complete, otherwise a reply is opened."""
        total = 0
        for piece in lay_out(messages, self.layout, training=whole):
            if isinstance(piece, Slot):
                if piece.part not in self.memory.tokens:
                    self.vision(piece.part)
                total += self.memory.tokens[piece.part]
            else:
                total += len(self.tokenizer.encode(piece.text)) if isinstance(piece, Words) else 1
        return total


@dataclass(frozen=True)
class Choice:
    """Which model, as the options say it."""

    model: ModelOptions
    media: MediaOptions
    quiet: bool = False

    def named(self, name: str) -> Choice:
        """The same with another model: a profile by name or file, or a checkpoint by name or folder."""
        known = {info.name for info in list_profiles()}
        is_profile = name in known or name.endswith((".yaml", ".yml"))
        profile, model = (name, None) if is_profile else (None, name)
        return replace(self, model=replace(self.model, adapter=[], profile=profile, model=model))


class ChatModel:
    """An opened model. Its weights are read by `load`; `release` gives their memory back."""

    def __init__(self, choice: Choice) -> None:
        """Find the model and read all of it that is small. Raises QvlError."""
        self.choice = choice
        self.profile, self.remark = chosen_profile(choice.model, choice.media)
        self._session: Session | None = None
        self._engine = self._open()

    def load(self) -> None:
        """Read the weights, with a bar. Raises QvlError."""
        from qvl.runtime.session import Session

        load_weights(self._engine, self.choice.model, self.choice.quiet)
        self._session = Session(self._engine)

    def release(self) -> None:
        """Forget the weights, so that another model has room; `load` reads them again."""
        self._session = None
        self._engine = self._open()
        gc.collect()  # layers and their hooks hold each other

    def other(self, name: str) -> ChatModel:
        """Another model, opened and not loaded. Raises QvlError."""
        return ChatModel(self.choice.named(name))

    def described(self) -> list[tuple[str, str]]:
        engine = self._engine
        adapters = ", ".join(request.name for request, _ in engine.adapters)
        rows = [
            ("model", self.profile.model),
            ("folder", str(engine.folder)),
            ("profile", self.profile.name),
            ("device", f"{', '.join(engine.split) or engine.placement.device}, {engine.placement.dtype}"),
            *([] if engine.quantization is None else [("weights", engine.quantization.width)]),
            ("context", f"{self.max_context} tokens"),
        ]
        return [*rows, ("adapters", adapters)] if adapters else rows

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    @property
    def raw_pixels(self) -> bool:
        return self.profile.raw_pixels

    @property
    def held_tokens(self) -> int:
        """Tokens in the cache, which the next turn need not compute again."""
        return 0 if self._session is None else self._session.tokens

    def sampling(self, overrides: Mapping[str, Any]) -> Sampling:
        """What comes of checkpoint, profile and `overrides`. Raises UsageError."""
        return self._engine.sampling(**overrides)

    def prompt(self, messages: Sequence[Message], sampling: Sampling) -> Prompt:
        """Read the media and lay out the prompt. Raises MediaError, ContextLimitError, MemoryLimitError, UsageError."""
        prompt = self._engine.prompt(messages)
        if not self.choice.model.no_memory_check:
            (self._engine if self._session is None else self._session).check_memory(prompt, sampling)
        return prompt

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Chunk]:
        """Answer; only what the cache does not have is computed."""
        if self._session is None:
            self.load()
        assert self._session is not None
        return self._session.stream(prompt, sampling)

    def forget(self) -> None:
        """Empty the cache: after an error that nobody foresaw, nothing in it is to be trusted."""
        if self._session is not None:
            self._session.clear()

    def tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens some messages add to a conversation. Reads media that were not read yet."""
        system = Message.of("system", "")
        count = self._processor.count
        opening = [] if messages and messages[0].role == "system" else [system]
        return count([*opening, *messages], whole=True) - (count([system], whole=True) if opening else 0)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a prompt of these messages has, the default system turn included."""
        return self._processor.count(messages, whole=False)

    def history(self, token_ids: Sequence[int], text: str) -> str:
        """An answer as later turns give it back: its text, with the grounding marks that stood in it."""
        return with_marks(self._engine.marked_text(self._kept(token_ids)), text, GROUNDING_MARKS)

    def _kept(self, token_ids: Sequence[int]) -> list[int]:
        """The ids without the special tokens that no history has."""
        special = self._processor.tokenizer.special
        dropped = {token_id for name, token_id in special.items() if name not in GROUNDING_MARKS}
        return [token_id for token_id in token_ids if token_id not in dropped]

    def _open(self) -> Engine:
        engine = open_engine(self.profile, self.choice.model)
        shared = {entry.name: getattr(engine.processor, entry.name) for entry in fields(Processor)}
        self._processor = engine.processor = RememberingProcessor(**shared)
        return engine


def profile_names() -> list[str]:
    return [info.name for info in list_profiles() if info.usable and info.command == "infer"]
