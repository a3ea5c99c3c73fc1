"""Prints docs/cli.md from the app itself: `python -m qvl.cli.document > docs/cli.md`; a test compares the two.

Built from the declarations and not from the text of --help, whose layout changes with Typer's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from qvl.cli.app import app
from qvl.cli.options import argument_name

_INTRODUCTION = """\
# Command line

Made from the app by `python -m qvl.cli.document > docs/cli.md`; edit the help texts there.

The answer goes to standard output and nothing else does. Exit codes: 0 an answer was given; 1 something went wrong;
2 the request was wrong; 130 ended by Ctrl-C; 141 the reader of a pipe went away.
"""

ENVIRONMENT = {
    "QVL_HOME": "The folder of qvl's own models, under `models/`, and of what was typed in `qvl chat`; by default "
    "`qvl` in the platform's folders for caches and for state.",
    "QVL_CONFIG_HOME": "The folder that holds `profiles/` with your own profiles.",
    "QVL_THREADS": "CPU threads, without --threads; else `OMP_NUM_THREADS`, else one for each core.",
    "QVL_VIDEO_READER": "What decodes clips: `decord`, `av`, or `auto` (decord, then PyAV), which is the default.",
    "QVL_DEBUG": "1 shows the traceback of an error, as --debug does.",
    "NO_COLOR": "No colours.",
    "HF_HOME, HF_HUB_CACHE": "Where Hugging Face's tools keep what they downloaded; models are found there.",
    "MODELSCOPE_CACHE": "The same for ModelScope's.",
}

JSON_KEYS = {
    "text": "The answer, without special tokens and without the stop text.",
    "token_ids": "Its tokens in order, special ones and the one that ended it included.",
    "prompt_tokens": "Tokens of the prompt, pictures and clips included.",
    "image_grid_thw": "For each picture: slices in time (1), rows and columns of 14x14 patches.",
    "video_grid_thw": "For each clip: slices of two frames, rows and columns of patches.",
    "finish_reason": "`stop`: the model or a stop text ended it; `length`: --max-new-tokens or the context did.",
    "boxes": "Each with `label`, `box` [x1, y1, x2, y2] in pixels, for a quad its four points as `quad`, and "
    "`picture`, counted from 0 (null: on a clip).",
    "stats": "Tokens; seconds of loading, reading media, vision, prefill, first token and decoding; bytes at the peak.",
    "model": "The name or folder of the checkpoint.",
    "profile": "The name of the profile.",
}


def commands() -> dict[str, str]:
    """What can be typed in a conversation, and what it does."""
    from qvl.cli.chat.commands import COMMANDS

    return {f"/{command.name} {command.usage}".rstrip(): _sentence(command.words) for command in COMMANDS}


def document() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    lines = [_INTRODUCTION]
    for name, command in group.commands.items():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        usage = " ".join(["qvl", name, "[OPTIONS]", *(_argument_name(argument) for argument in arguments)])
        lines += [f"## qvl {name}", "", _sentence(command.help), "", "```", usage, "```", ""]
        lines += _panels(command.params)
        if name == "chat":
            lines += ["### Commands", "", *_table(commands())]
        if name == "infer":
            lines += ["### Keys of --json", "", *_table(JSON_KEYS)]
    lines += ["## Environment", "", *_table(ENVIRONMENT)]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: dict[str, str]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for names, words in rows.items():
        yield f"| {', '.join(f'`{_cell(name)}`' for name in names.split(', '))} | {_cell(words)} |"
    yield ""


def _panels(parameters: list[Any]) -> Iterator[str]:
    """Options under their panel's heading, in the order of declaration."""
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        if parameter.name != "help" and not getattr(parameter, "hidden", False):
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
    for panel, members in panels.items():
        if panel:
            yield from (f"### {panel}", "")
        yield from ("| | |", "|---|---|")
        for member in members:
            yield f"| {_cell(_names(member))} | {_cell(_sentence(member.help))} |"
        yield ""


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument_name(parameter)}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return names if parameter.is_flag else f"{names} `{_value_name(parameter)}`"


def _argument_name(parameter: Any) -> str:
    return f"[{argument_name(parameter)}]"


def _value_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
