"""Prints docs/cli.md from the app itself: `python -m qvl.cli.document > docs/cli.md`; a test compares the two.

Built from the declarations and not from the text of --help, whose layout changes with Typer's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from qvl.cli.app import app

_INTRODUCTION = """\
# Command line

Made from the app by `python -m qvl.cli.document > docs/cli.md`; edit the help texts there.

The answer goes to standard output and nothing else does. Exit codes: 0 an answer was given; 1 something went wrong;
2 the request was wrong; 130 ended by Ctrl-C; 141 the reader of a pipe went away.

Environment: `QVL_THREADS` CPU threads; `QVL_CONFIG_HOME` the folder that holds `profiles/` with your own profiles;
`QVL_DEBUG=1` tracebacks; `NO_COLOR` no colours.
"""


def document() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    lines = [_INTRODUCTION]
    for name, command in group.commands.items():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        usage = " ".join(["qvl", name, "[OPTIONS]", *(_argument_name(argument) for argument in arguments)])
        lines += [f"## qvl {name}", "", _sentence(command.help), "", "```", usage, "```", ""]
        lines += _panels(command.params)
    return "\n".join(lines).rstrip() + "\n"


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
    name = parameter.metavar or parameter.name.upper()
    return f"[{name}...]" if parameter.nargs == -1 else f"[{name}]"


def _value_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(document(), end="")
