"""An example as the model sees it, for people: every token, runs of pads folded, what is learnt marked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from qvl.model.config import ModelConfig
from qvl.processing.processor import IGNORED
from qvl.processing.prompt import Example
from qvl.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

_LEARNT, _SPECIAL, _PAD = "bold green", "dim", "cyan"
_OPEN, _CLOSE = "⟦", "⟧"
_TIMES = "\N{MULTIPLICATION SIGN}"


def show_sample(example: Example, tokenizer: Tokenizer, config: ModelConfig, *, colour: bool | None = None) -> Text:
    """The whole example as rich text, and a line with its numbers.

    Special tokens are shown by name and pads as one with their number. Supervised tokens are green; without colour they
    stand in ⟦ ⟧. Control characters of the text other than line ends and tabs are shown as escapes.
    colour: None asks whether stdout shows colours.
    """
    from rich.console import Console
    from rich.text import Text

    if colour is None:
        console = Console()
        colour = console.color_system is not None and not console.no_color
    text = Text()
    for learnt, pieces in groupby(_pieces(example, tokenizer, config), key=lambda piece: piece[1]):
        text.append(_OPEN if learnt and not colour else "")
        for words, _, style in pieces:
            text.append(words, (_LEARNT if learnt else style) if colour else None)
        text.append(_CLOSE if learnt and not colour else "")
    text.append("" if text.plain.endswith("\n") else "\n")
    text.append(_numbers(example, config), "bold" if colour else None)
    return text


def _pieces(example: Example, tokenizer: Tokenizer, config: ModelConfig) -> Iterator[tuple[str, bool, str | None]]:
    """Runs of tokens of one kind: (text, supervised, style)."""
    names = {token_id: name for name, token_id in tokenizer.special.items()}
    pads = (config.image_token_id, config.video_token_id)
    tokens = zip(example.prompt.input_ids.tolist(), (example.labels != IGNORED).tolist(), strict=True)
    # Special tokens group by id, so that a run of pads is one group; words group by being words.
    for (special, learnt), run in groupby(
        tokens, key=lambda token: (token[0] if token[0] in names else None, token[1])
    ):
        ids = [token_id for token_id, _ in run]
        if special is None:
            yield _printable(tokenizer.decode(ids)), learnt, None
        elif special in pads:
            yield f"{names[special]}{_TIMES}{len(ids)}", learnt, _PAD
        else:
            yield names[special] * len(ids), learnt, _SPECIAL


def _printable(text: str) -> str:
    """Without what could move a terminal's cursor or change its colours."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def _numbers(example: Example, config: ModelConfig) -> str:
    visions = example.prompt.visions
    seen = sum(vision.tokens(config.vision_config) for vision in visions)
    line = f"{len(example.prompt)} tokens, {seen} of vision, {example.supervised_tokens} supervised"
    grids = ", ".join(f"{vision.kind} {_TIMES.join(map(str, vision.grid_thw))}" for vision in visions)
    return f"{line}; grids {grids}" if grids else line
