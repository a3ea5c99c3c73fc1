"""What a terminal shows of a long answer of `qvl chat` when it is over."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from qvl.cli.chat.live import markdown

pytest.importorskip("pty", reason="a pseudo-terminal is needed")

from tests.e2e.terminal import Terminal

HEIGHT = 12


@pytest.mark.slow
def test_an_answer_longer_than_the_terminal_scrolls_and_is_there_once(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Of random weights, which say nothing that a terminal would leave out, such as grounding marks."""
    arguments = ["chat", "--model", str(tiny_checkpoint), "--ignore-eos", "--temperature", "1", "--seed", "1"]
    with Terminal([*arguments, "--max-new-tokens", "600"], tmp_path, {"QVL_HOME": str(tmp_path)}, HEIGHT) as terminal:
        terminal.prompt()
        shown = terminal.say("Tell me all.").splitlines()
        terminal.say("/save talk.json")
    answer = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))[1]["content"]
    whole = io.StringIO()
    # Control characters are left out of what a terminal is sent.
    visible = "".join(char for char in answer if char in "\n\t" or char.isprintable() or not char.isascii())
    Console(file=whole, width=100, color_system=None).print(markdown(visible))
    expected = [line.rstrip() for line in whole.getvalue().rstrip().splitlines()]
    assert len(expected) > HEIGHT
    assert shown[0] == "> Tell me all." and shown[1 : len(expected) + 1] == expected
    assert [line for line in shown[len(expected) + 1 :] if not line.startswith("cut at 600 tokens")] == []


@pytest.mark.slow
def test_what_is_typed_during_an_answer_waits_for_the_prompt(tmp_path: Path) -> None:
    arguments = ["chat", "--profile", "demo", "--ignore-eos", "--max-new-tokens", "100"]
    with Terminal(arguments, tmp_path, {"QVL_HOME": str(tmp_path)}) as terminal:
        terminal.prompt()
        terminal.line("Tell me all.")
        terminal.wait(r"Tell me all\.\n(?!qvl: )[^\n]*\w{4}")
        terminal.type("/exit\r")
        assert terminal.end() == 0
        lines = terminal.shown.splitlines()
        assert [line for line in lines if "/exit" in line] == ["> /exit"]
