"""What Tab offers: commands, settings, models, and files where a path is being typed. Knows no terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qvl.cli.chat.commands import COMMANDS
from qvl.cli.chat.settings import NAMES
from qvl.cli.media import kind_of
from qvl.cli.paths import local

# The word under the cursor: after an opening quote up to here, or what has no space that is not escaped.
_WORD = re.compile(r"""(?:^|(?<=\s))(?:(?P<quote>["'])(?P<quoted>[^"']*)|(?P<bare>(?:\\.|[^\s\\"'])*))$""")
_SPECIAL = re.compile(r"([\s\\'\"])")


@dataclass(frozen=True)
class Offer:
    """text takes the place of the last `length` characters before the cursor; shown is what the menu says."""

    text: str
    length: int
    shown: str
    words: str = ""


def offers(before: str, models: Callable[[], Sequence[str]]) -> Iterator[Offer]:
    """What could follow the text before the cursor. models: names for /model."""
    if command := re.fullmatch(r"\s*/([a-z]*)", before):
        yield from _commands(command[1])
    if command := re.match(r"\s*/([a-z]+)\s+", before):
        follows = next((known.follows for known in COMMANDS if known.name == command[1]), "")
        rest = before[command.end() :]
        if follows == "file":
            yield from _files(before, any_file=command[1] in ("load", "save", "export", "boxes"))
        elif " " not in rest:
            yield from (Offer(name, len(rest), name) for name in _names(follows, models) if name.startswith(rest))
            if follows == "model":
                yield from _files(before, any_file=False)
        return
    yield from _files(before, any_file=False)


def _names(follows: str, models: Callable[[], Sequence[str]]) -> Sequence[str]:
    if follows == "setting":
        return NAMES
    if follows == "model":
        return models()
    return [known.name for known in COMMANDS] if follows == "command" else []


def _commands(begun: str) -> Iterator[Offer]:
    for command in COMMANDS:
        if command.name.startswith(begun):
            space = " " if command.usage else ""
            yield Offer(f"/{command.name}{space}", len(begun) + 1, f"/{command.name}", command.words)


def _files(before: str, *, any_file: bool) -> Iterator[Offer]:
    """Folders, and the files that can be attached, that begin like the word being typed."""
    match = _WORD.search(before)
    if match is None:
        return
    quote = match["quote"] or ""
    typed = match["quoted"] if quote else re.sub(r"\\(.)", r"\1", match["bare"])
    if not typed and not before.lstrip().startswith("/"):
        return  # every word of a question could be a file
    folder, begun = os.path.split(typed)
    place = local(folder or ".")
    try:
        entries = sorted(place.iterdir())
    except (OSError, ValueError):
        return
    for entry in entries:
        name = entry.name
        if not name.startswith(begun) or (name.startswith(".") and not begun):
            continue
        is_folder = entry.is_dir()
        if not (is_folder or any_file or kind_of(name)):
            continue
        path = os.path.join(folder, name) + (os.sep if is_folder else "")  # noqa: PTH118 -- as it was typed
        end = "" if is_folder else quote or ""
        text = f"{quote}{path}{end}" if quote else _SPECIAL.sub(r"\\\1", path)
        yield Offer(text, len(match[0]), name + (os.sep if is_folder else ""))
