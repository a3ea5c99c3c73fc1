"""Answers of a model that somebody else holds: one in training, which is asked between its updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qvl.messages import Message
from qvl.model.device import Placement
from qvl.model.qwen2_vl import Qwen2VL
from qvl.processing.processor import Processor
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.generation import GenerationConfig


def answerer(
    profile: Profile, folder: Path, processor: Processor, placement: Placement
) -> Callable[[Qwen2VL, Sequence[Message]], str]:
    """What a model, in evaluation mode, answers to messages: the likeliest words, as long as the profile lets it.

    folder: the checkpoint that the model began as. Raises QvlError for what an Engine would.
    """
    generation = GenerationConfig.from_folder(folder, processor.config.eos_token_id)

    def answer(model: Qwen2VL, messages: Sequence[Message]) -> str:
        # An engine for each question: its weights have changed since the last, and with them what could be reused.
        engine = Engine(profile, folder, processor, generation, placement)
        engine.lend(model)
        return engine.generate(messages, engine.sampling(temperature=0.0)).text

    return answer
