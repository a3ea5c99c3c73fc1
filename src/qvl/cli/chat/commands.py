"""The commands of a conversation: one table, which parsing, help and completion all read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qvl.cli.chat import actions
from qvl.errors import UsageError, suggest

if TYPE_CHECKING:
    from qvl.cli.chat.talk import Chat

# What follows a command, for completion.
Follows = Literal["", "file", "setting", "model", "command"]
# A path such as /tmp/cat.png is no command: its first word goes on after the letters.
_COMMAND = re.compile(r"/([A-Za-z?]+)(?=\s|$)")


@dataclass(frozen=True)
class Command:
    """usage: what follows the name. words: what --help says. run: is given the rest of the line, stripped."""

    name: str
    usage: str
    words: str
    run: Callable[[Chat, str], None]
    follows: Follows = ""


def _help(chat: Chat, rest: str) -> None:
    name = rest.lstrip("/")
    if name:
        command = _find(name)
        chat.view.rows([(f"/{command.name} {command.usage}".rstrip(), command.words)])
        return
    rows = [(f"/{command.name} {command.usage}".rstrip(), command.words) for command in COMMANDS]
    chat.view.rows([*rows, *_OTHERWISE])


_OTHERWISE = (
    ("cat.png What is it?", "a path or URL of a picture or clip is attached where it stands; quote spaces"),
    ('"""', "begins and ends a text of several lines; so does Alt-Enter within a line"),
    ("//text", "a question that begins with /"),
    ("Ctrl-C, Ctrl-D", "stop the answer; leave"),
)

COMMANDS = (
    Command("image", "PATH|URL ...", "attach pictures to the next question", actions.image, "file"),
    Command("video", "PATH|URL ...", "attach clips: files, folders or patterns of frames", actions.video, "file"),
    Command("paste", "", "attach the picture in the clipboard", actions.paste),
    Command("system", "[TEXT|--default]", "show or set the system turn", actions.system),
    Command("set", "[NAME VALUE]", "sampling and pixels; 'default' takes one back", actions.set_, "setting"),
    Command("show", "", "the conversation, its tokens and settings", actions.show),
    Command("retry", "", "ask the last question again", actions.retry),
    Command("undo", "", "take back what is attached, the last turn, or a /clear, /load or /drop", actions.undo),
    Command("edit", "[TEXT]", "change the last question in $EDITOR or on the line, and ask it", actions.edit),
    Command("drop", "[N ...|N-M]", "leave turns out of the conversation; alone: list them", actions.drop),
    Command("clear", "", "begin a new conversation", actions.clear),
    Command("save", "FILE [--embed]", "write JSON, for /load and for infer --messages", actions.save, "file"),
    Command("load", "FILE", "go on with a conversation from JSON", actions.load, "file"),
    Command("export", "FILE.md", "write the conversation as Markdown", actions.export, "file"),
    Command("boxes", "FILE", "draw the boxes of the last answer on its picture", actions.boxes, "file"),
    Command("model", "[NAME|DIR]", "show the model, or go on with another", actions.model, "model"),
    Command("stats", "", "tokens and times of the last answer", actions.stats),
    Command("help", "[COMMAND]", "this list", _help, "command"),
    Command("exit", "", "leave, as Ctrl-D does", actions.leave),
)
_BY_NAME = {command.name: command for command in COMMANDS}
_ALIASES = {"quit": "exit", "q": "exit", "bye": "exit", "?": "help", "h": "help", "picture": "image", "clip": "video"}


def is_command(text: str) -> bool:
    """Whether a line is meant as a command, known or not."""
    return _COMMAND.match(text) is not None


def run(chat: Chat, text: str) -> None:
    """Carry out a command. Raises UsageError that names the nearest for an unknown one, and what the command raises."""
    match = _COMMAND.match(text)
    assert match is not None
    _find(match[1]).run(chat, text[match.end() :].strip())


def _find(name: str) -> Command:
    known = _ALIASES.get(name.lower(), name.lower())
    if known not in _BY_NAME:
        near = suggest(known, _BY_NAME).replace("'", "'/", 1)
        raise UsageError(f"there is no command /{name}{near or '; /help lists them'}")
    return _BY_NAME[known]
