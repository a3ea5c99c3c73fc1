"""An answer as it grows in a terminal: in the end it is there once, as if it had been printed whole."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from qvl.cli.chat import live
from qvl.cli.chat.live import LiveMarkdown, markdown
from tests.screen import Screen

ANSWER = """# A table and more

Some words about **it**, long enough to be broken over several lines of a terminal that is rather narrow, and more.

| name | colour |
|---|---|
| cat | grey |
| dog | brown |

- one
- two, which is long enough to go on in the next line of a terminal that is rather narrow
- three

```python
for number in range(3):
    print(number)
```

1. first
2. second

> said by *somebody*

The end, with `code` and a [link](https://example.org).
"""


def shown(text: str, pieces: list[str], width: int, height: int) -> tuple[list[str], list[str]]:
    """The lines of a terminal after an answer came in pieces, and after it was printed whole."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, height=height, color_system=None)
    answer = LiveMarkdown(console)
    answer.start()
    for piece in pieces:
        answer.write(piece)
    answer.stop()
    screen = Screen(width, height)
    screen.feed(written.getvalue())
    whole = io.StringIO()
    Console(file=whole, width=width, color_system=None).print(markdown(text))
    return screen.text, [line.rstrip() for line in whole.getvalue().rstrip().splitlines()]


@pytest.fixture(autouse=True)
def always_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_INTERVAL", 0.0)
    monkeypatch.setattr(live, "_SHARE", float("inf"))


@pytest.mark.parametrize("height", [5, 12, 60])
@pytest.mark.parametrize("length", [5, 31, 10_000])
def test_a_growing_answer_ends_as_one_printed_whole(height: int, length: int) -> None:
    pieces = [ANSWER[start : start + length] for start in range(0, len(ANSWER), length)]
    grown, whole = shown(ANSWER, pieces, 48, height)
    assert grown == whole


def test_a_paragraph_taller_than_the_terminal_is_not_repeated() -> None:
    random.seed(1)
    text = " ".join(f"word{number}" for number in range(400))
    grown, whole = shown(text, [f"{word} " for word in text.split()], 40, 6)
    assert grown == whole and len(grown) > 60


def test_a_code_block_that_is_cut_off_is_shown() -> None:
    text = "See:\n\n```\n" + "\n".join(f"line {number}" for number in range(30))
    grown, whole = shown(text, [text[start : start + 3] for start in range(0, len(text), 3)], 40, 8)
    assert grown == whole and any("line 29" in line for line in grown)


def test_nothing_in_an_answer_commands_the_terminal() -> None:
    grown, _ = shown("", ["a\x1b[2Jb\x07c"], 40, 8)
    assert grown == ["a[2Jbc"]


def test_lines_tags_and_addresses_of_an_answer_are_all_there() -> None:
    text = "Total\n12.50 EUR\n\n<table><tr>\n<td>a</td>\n\nSee <b>here</b>: [a page](https://example.org/x)\n"
    grown, _ = shown(text, [text], 60, 20)
    assert grown == [
        "Total",
        "12.50 EUR",
        "",
        "<table><tr>",
        "<td>a</td>",
        "",
        "See <b>here</b>: a page (https://example.org/x)",
    ]


def test_an_empty_answer_leaves_no_line() -> None:
    assert shown("", ["", " ", "\n"], 40, 8)[0] == []
