"""`qvl chat` as users run it: the real program on the demo model, typed into a terminal and piped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qvl.processing.template import GROUNDING_MARKS

pytest.importorskip("pty", reason="a pseudo-terminal is needed")

from tests.e2e.terminal import PATIENCE, Terminal

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = ["chat", "--profile", "demo"]
# Drafts by the clock could take either of two tokens that tie.
FEW = ["--max-new-tokens", "8", "--ignore-eos", "--speculate", "off"]
MANY = ["--max-new-tokens", "20000", "--ignore-eos", "--no-memory-check"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(EXAMPLES / "shapes.png", tmp_path / "my shapes.png")
    shutil.copy(EXAMPLES / "scene.jpg", tmp_path)
    return tmp_path


@pytest.fixture
def terminal(home: Path, folder: Path) -> Iterator[Terminal]:
    with Terminal([*CHAT, *FEW], folder, {"QVL_HOME": str(home)}) as opened:
        assert "Ctrl-D leaves" in opened.prompt()
        yield opened


def piped(home: Path, folder: Path, *arguments: str, lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qvl.cli", *arguments],
        input=lines,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        cwd=folder,
        env={**os.environ, "QVL_HOME": str(home)},
    )


def number(pattern: str, shown: str) -> int:
    found = re.search(pattern, shown)
    assert found, f"{pattern!r} is not in:\n{shown}"
    return int(found[1])


def saved(path: Path) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return messages


def plain(text: str) -> str:
    return re.sub("|".join(map(re.escape, GROUNDING_MARKS)), "", text)


def test_a_conversation_from_attaching_to_leaving(terminal: Terminal, folder: Path) -> None:
    assert re.search(r"attached: my shapes.png \(\d+ tokens\)", terminal.say(f"'{folder}/my shapes.png'"))
    assert terminal.screen.lines[terminal.screen.row].startswith("[1 attached] >")
    assert "cut at 8 tokens" in terminal.say("What is it?")
    assert "cut at 8 tokens" in terminal.say("And scene.jpg too?")
    shown = terminal.say("/show")
    assert "[my shapes.png] What is it?" in shown and "[scene.jpg] And too?" in shown.replace("  ", " ")
    terminal.say("/save talk.json")
    first = saved(folder / "talk.json")
    assert [message["role"] for message in first] == ["user", "assistant", "user", "assistant"]
    assert "did you mean '/undo'?" in terminal.say("/undu")
    assert "1 turn left" in terminal.say("/undo")
    terminal.say("/save less.json")
    assert saved(folder / "less.json") == first[:2]
    terminal.say("/retry")  # greedy: the same again
    terminal.say("/save less.json")
    assert saved(folder / "less.json") == first[:2]
    assert "2 turns from" in terminal.say("/load talk.json")
    terminal.say("/save again.json")
    assert saved(folder / "again.json") == first
    terminal.line("/exit")
    assert terminal.end() == 0


def test_the_next_turn_equals_a_fresh_run_and_costs_only_what_is_new(
    terminal: Terminal, home: Path, folder: Path
) -> None:
    terminal.say("scene.jpg What is there?")
    first = terminal.say("/stats")
    prompt, picture = number(r"prompt +(\d+) tokens", first), number(r"(\d+) of them pictures", first)
    assert (number(r"computed +(\d+)", first), number(r"encoded +(\d+)", first)) == (prompt, 1)
    terminal.say("And what else?")
    second = terminal.say("/stats")
    whole, computed = number(r"prompt +(\d+) tokens", second), number(r"computed +(\d+) tokens", second)
    assert number(r"tokens, (\d+) from the cache", second) == whole - computed
    # The prompt before is all in the cache; a token may be joined with the answer that follows it.
    assert 0 < computed <= whole - prompt + 1 and computed < picture
    assert (number(r"encoded +(\d+)", second), number(r"(\d+) known already", second)) == (0, 1)
    terminal.say("/save talk.json")
    # Back to the common prefix: all of it but the last token, whose logits are wanted.
    terminal.say("/retry")
    assert number(r"computed +(\d+) tokens", terminal.say("/stats")) == 1
    terminal.say("/undo")
    terminal.say("And what else?")
    assert number(r"computed +(\d+) tokens", terminal.say("/stats")) == 1
    messages = saved(folder / "talk.json")
    (folder / "fresh.json").write_text(json.dumps(messages[:-1]))
    fresh = piped(home, folder, "infer", "--profile", "demo", "--messages", "fresh.json", *FEW, "--json", lines="")
    answer = json.loads(fresh.stdout)
    assert answer["text"] == plain(messages[-1]["content"])
    assert answer["prompt_tokens"] == whole


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(home: Path, folder: Path) -> None:
    with Terminal([*CHAT, *MANY], folder, {"QVL_HOME": str(home)}) as terminal:
        terminal.prompt()
        terminal.line("Tell me all.")
        terminal.wait(r"Tell me all\.\n(?!qvl: )[^\n]*\w{4}")
        terminal.type("\x03")
        assert "stopped; what was said stays in the conversation" in terminal.prompt()
        terminal.say("/set max_new_tokens 8")
        assert "cut at 8 tokens" in terminal.say("Go on.")
        # What was drawn before Ctrl-C is in the cache like any answer.
        assert number(r"(\d+) from the cache", terminal.say("/stats")) > 20
        terminal.say("/save talk.json")
        first, second = (message["content"] for message in saved(folder / "talk.json")[1::2])
        assert first and second
        terminal.type("half a line\x03")
        assert "Ctrl-D or /exit leaves" in terminal.wait("leaves")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


def test_errors_keep_the_conversation_as_it_was(terminal: Terminal, folder: Path) -> None:
    terminal.say("One?")
    terminal.say("/save before.json")
    (folder / "broken.png").write_bytes(b"no picture")
    assert "no such file" in terminal.say("/image missing.png")
    assert "no/where.png: no such file" in terminal.say("no/where.png What?")
    assert "broken.png" in terminal.say("broken.png What is it?")
    terminal.say("/save after.json")
    assert saved(folder / "after.json") == saved(folder / "before.json")
    assert "given up" in terminal.say("/undo")


def test_a_full_context_offers_what_to_drop(home: Path, folder: Path) -> None:
    with Terminal([*CHAT, *FEW, "--set", "max_context=120"], folder, {"QVL_HOME": str(home)}) as terminal:
        terminal.prompt()
        terminal.say("One " + "word " * 10)
        terminal.say("Two?")
        shown = terminal.say("Three " + "word " * 60)
        assert "the context holds 120; nothing was sent" in shown and re.search(r"turn 1 +\d+ tokens +One word", shown)
        offered = re.search(r"(/drop [\d ]+) takes \d+ tokens out", shown)
        assert offered, shown
        terminal.say(offered[1].strip())
        assert "nothing was sent" not in terminal.say("/retry")
        assert re.search(r"turn \d +\d+ tokens +Three word", terminal.say("/show"))


def test_several_lines_completion_history_and_editing(terminal: Terminal, home: Path, folder: Path) -> None:
    terminal.line('"""first')
    terminal.type("second\r")
    terminal.type('"""\r')
    terminal.prompt()
    terminal.say("third\x1b\rfourth")  # Alt-Enter
    terminal.say("/save talk.json")
    assert [message["content"] for message in saved(folder / "talk.json")[::2]] == ["first\nsecond", "third\nfourth"]
    terminal.type("my\t")
    terminal.wait(r"my\\ shapes\.png")
    assert "attached: my shapes.png" in terminal.say("")
    assert "edit> third" in _shown_while_editing(terminal)
    terminal.line("/exit")
    assert terminal.end() == 0
    with Terminal([*CHAT, *FEW], folder, {"QVL_HOME": str(home)}) as later:
        later.prompt()
        later.type("\x1b[A\x1b[A")  # the line before /exit
        later.wait(r"> /save talk\.json")
        later.type("\x03")
        later.prompt()
        later.line("/exit")
        assert later.end() == 0


def _shown_while_editing(terminal: Terminal) -> str:
    terminal.line("/edit")
    shown = terminal.wait("edit> third")
    terminal.type(" and more\r")
    terminal.prompt()
    terminal.say("/save talk.json")
    return shown


def test_an_editor_is_used_where_one_is_set(home: Path, folder: Path) -> None:
    script = folder / "editor"
    script.write_text('#!/bin/sh\nprintf "Changed?" > "$1"\n')
    script.chmod(0o755)
    with Terminal([*CHAT, *FEW], folder, {"QVL_HOME": str(home), "EDITOR": str(script)}) as terminal:
        terminal.prompt()
        terminal.say("One?")
        terminal.say("/edit")
        terminal.say("/save talk.json")
        assert saved(folder / "talk.json")[0]["content"] == "Changed?"


def test_colours_are_left_out_where_they_are_not_wanted(home: Path, folder: Path) -> None:
    colour = re.compile(r"\x1b\[[\d;]*(?:3|4|9|10)[0-8]\b[\d;]*m")
    with Terminal([*CHAT, *FEW], folder, {"QVL_HOME": str(home), "NO_COLOR": "1"}) as terminal:
        terminal.prompt()
        assert "no command" in terminal.say("/nothing")
        assert not colour.search(terminal.raw)
    with Terminal([*CHAT, *FEW], folder, {"QVL_HOME": str(home), "TERM": "dumb"}) as terminal:
        terminal.wait(">$")
        terminal.line("/nothing")
        terminal.wait(r"no command(?s:.)*\n>$")
        assert "\x1b" not in terminal.raw
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_piped_dialogue_is_plain(home: Path, folder: Path) -> None:
    lines = 'scene.jpg What is it?\n"""\nAnd\nthen?\n"""\n\n/stats\n/edit Why?\n/save talk.json\n'
    done = piped(home, folder, *CHAT, *FEW, lines=lines)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr
    questions = [message["content"] for message in saved(folder / "talk.json")]
    assert questions[0][1] == {"type": "text", "text": "What is it?"} and questions[2] == "Why?"
    answers = [plain(content) for content in questions[1::2]]
    assert done.stdout.startswith(answers[0] + "\n") and done.stdout.endswith("\n" + answers[1] + "\n")
    assert "from the cache" in done.stderr and "qvl: attached: scene.jpg" in done.stderr


def test_a_piped_dialogue_goes_on_after_an_error_and_reports_it(home: Path, folder: Path) -> None:
    done = piped(home, folder, *CHAT, *FEW, "--quiet", lines="no/thing.png What?\n/nothing\nOne?\n/exit\nTwo?\n")
    assert done.returncode == 1 and len(done.stdout.strip()) > 0
    errors = done.stderr.splitlines()
    assert [error.startswith("qvl: error: ") for error in errors] == [True, True]
    assert done.stdout == piped(home, folder, *CHAT, *FEW, "--quiet", lines="One?\n").stdout


def test_ctrl_c_ends_a_piped_dialogue(home: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", *CHAT, *MANY, "--quiet"]
    pipe, variables = subprocess.PIPE, {**os.environ, "QVL_HOME": str(home)}
    with subprocess.Popen(command, cwd=folder, env=variables, stdin=pipe, stdout=pipe, stderr=pipe) as talking:
        assert talking.stdin and talking.stdout and talking.stderr
        talking.stdin.write(b"One?\nTwo?\n")
        talking.stdin.flush()
        assert talking.stdout.read(10)
        talking.send_signal(signal.SIGINT)
        assert talking.wait(PATIENCE) == 130
        assert talking.stdout.read().endswith(b"\n") and talking.stderr.read() == b""


def test_options_of_infer_begin_a_conversation(home: Path, folder: Path) -> None:
    flags = ["scene.jpg", "--system", "Be brief.", "--max-pixels", "12544", "--stats"]
    done = piped(home, folder, *CHAT, *FEW, *flags, lines="What?\n/save talk.json\n")
    assert done.returncode == 0 and "tokens/s" in done.stderr
    system, question, _ = saved(folder / "talk.json")
    assert system["content"] == "Be brief." and question["content"][0]["max_pixels"] == 12544
    more = piped(home, folder, *CHAT, *FEW, "--messages", "talk.json", lines="/show\n")
    assert "turn 1" in more.stderr and "[scene.jpg] What?" in more.stderr
    for wrong in (
        ["-"],
        ["--top-p", "7"],
        ["missing.png"],
        ["--messages", "none.json"],
        ["--fps", "1", "--nframes", "2"],
    ):
        refused = piped(home, folder, *CHAT, *wrong, lines="What?\n")
        assert refused.returncode in (1, 2) and refused.stdout == "" and refused.stderr.count("\n") == 1


def test_another_model_goes_on(home: Path, folder: Path, tiny_checkpoint: Path) -> None:
    lines = f"scene.jpg What?\n/model\n/model {tiny_checkpoint}\nAnd?\n/stats\n/model missing/model\nStill?\n"
    done = piped(home, folder, *CHAT, *FEW, lines=lines)
    assert done.returncode == 1 and str(tiny_checkpoint) in done.stderr and "missing/model" in done.stderr
    # Another model has computed nothing of what was said before.
    assert number(r"tokens, (\d+) from the cache", done.stderr) == 0
