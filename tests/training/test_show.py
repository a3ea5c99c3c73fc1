"""What `--show-sample` prints."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qvl.messages import Image, Message, Video
from qvl.processing.processor import Processor
from qvl.training.show import show_sample
from tests.golden import MEDIA
from tests.training.data_support import processor_of

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return processor_of(tiny_checkpoint)


def shown(processor: Processor, *messages: Message, colour: bool = False) -> str:
    text = show_sample(processor.example(messages), processor.tokenizer, processor.config, colour=colour)
    console = Console(file=io.StringIO(), force_terminal=colour, color_system="standard" if colour else None, width=500)
    console.print(text)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_colour_replies_stand_in_brackets(processor: Processor) -> None:
    messages = (
        Message.of("user", Image(str(MEDIA / "70x98.png")), "What colour?"),
        replace(Message.of("assistant", "Red."), loss=False),
        Message.of("user", "Sure?"),
        Message.of("assistant", "Yes [b]红[/b]."),
    )
    tokens = len(processor.example(messages).prompt)
    supervised = processor.example(messages).supervised_tokens
    assert shown(processor, *messages) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|image_pad|>{TIMES}8<|vision_end|>What colour?<|im_end|>\n"
        "<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Yes [b]红[/b].<|im_end|>⟧\n"
        f"{tokens} tokens, 8 of vision, {supervised} supervised; grids image 1{TIMES}8{TIMES}4\n"
    )


def test_with_colour_there_are_no_brackets(processor: Processor) -> None:
    text = shown(processor, Message.of("user", "Red?"), Message.of("assistant", "Yes."), colour=True)
    assert "\x1b[1;32mYes." in text
    assert "⟦" not in text


def test_colour_is_used_where_it_shows(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    example = processor.example([Message.of("user", "Red?"), Message.of("assistant", "Yes.")])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for forced, bracketed in (("", True), ("1", False)):
        monkeypatch.setenv("FORCE_COLOR", forced)
        assert ("⟦Yes." in show_sample(example, processor.tokenizer, processor.config).plain) is bracketed
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦Yes." in show_sample(example, processor.tokenizer, processor.config).plain


def test_clips_and_text_that_would_change_the_terminal(processor: Processor) -> None:
    clip = Video(str(MEDIA / "short.mp4"), max_pixels=50_176)
    text = shown(processor, Message.of("user", clip, "\x1b[2J\r?"), Message.of("assistant", "Yes."))
    assert f"<|video_pad|>{TIMES}" in text
    assert "\\x1b[2J\\r?" in text
    assert f"; grids video 2{TIMES}" in text
