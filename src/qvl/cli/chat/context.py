"""How much of the context a conversation takes, and what is said when it runs out. Nothing is ever cut unasked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvl.cli.chat.attachments import short_name
from qvl.cli.chat.dialogue import Dialogue, media_of, text_of
from qvl.errors import ContextLimitError
from qvl.messages import Message

if TYPE_CHECKING:
    from qvl.cli.chat.model import ChatModel
    from qvl.cli.chat.talk import Chat
    from qvl.runtime.records import Sampling

_NEARLY_FULL = 0.9
_LABEL = 60


def label(messages: Sequence[Message]) -> str:
    """A turn in a few words: its media and the beginning of its text."""
    media = "".join(f"[{short_name(part)}] " for part in media_of(messages))
    words = " ".join(" ".join(text_of(message.parts) for message in messages).split())
    return media + (words if len(words) <= _LABEL else f"{words[: _LABEL - 3]}...")


def costs(model: ChatModel, dialogue: Dialogue) -> list[int]:
    """Tokens of each turn."""
    return [model.tokens(turn.messages) for turn in dialogue.turns]


def offer(chat: Chat, error: ContextLimitError, base: Dialogue, sampling: Sampling) -> None:
    """After a conversation that is too long: its turns with their tokens, and which of them to drop."""
    tokens = costs(chat.model, base)
    chat.view.rows(chat.overview()[: len(tokens)])
    numbers = enough(tokens, error.tokens, error.limit, sampling.max_new_tokens)
    if numbers:
        listed = " ".join(map(str, numbers))
        saved = sum(tokens[number - 1] for number in numbers)
        chat.view.note(f"/drop {listed} takes {saved} tokens out, then /retry asks again; /clear begins anew")
    elif error.vision_tokens:
        chat.view.note("the question alone is too long: /set max_pixels N and /retry, or /edit it")
    else:
        chat.view.note("the question alone is too long: /edit shortens it")


def enough(tokens: Sequence[int], total: int, limit: int, answer: int) -> list[int]:
    """The fewest of the oldest turns that leave room for the answer, or at least for its beginning; from 1."""
    for room in (answer, 1):
        left = total
        for number, cost in enumerate(tokens, 1):
            left -= cost
            if left + room <= limit:
                return list(range(1, number + 1))
    return []


def remarks(chat: Chat, text: str, sampling: Sampling) -> None:
    """What is to be said of an answer that was just given."""
    last, limit = chat.last, chat.model.max_context
    assert last is not None
    used = last.prompt_tokens + last.new_tokens
    if last.ended == "interrupted":
        chat.view.note("stopped; what was said stays in the conversation")
    elif not text.strip():
        chat.view.note("the answer is empty")
    if last.ended == "loop":
        chat.view.note("the answer repeated itself and was ended (stop_loops)")
    if last.ended == "length" and used >= limit:
        chat.view.note(f"the context of {limit} tokens is full, which cut this answer; /drop lists what can go")
    elif last.ended == "length":
        chat.view.note(f"cut at {sampling.max_new_tokens} tokens: /set max_new_tokens N and /retry give more")
    elif used >= _NEARLY_FULL * limit:
        chat.view.note(f"the conversation has {used} tokens, the context holds {limit}; /drop lists what can go")
