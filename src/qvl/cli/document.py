"""Prints docs/cli.md from the app itself: `python -m qvl.cli.document > docs/cli.md`; a test compares the two.

Built from the declarations and not from the text of --help, whose layout changes with Typer's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import typer

from qvl.cli.app import app
from qvl.cli.options import argument_name
from qvl.runtime.records import Stats

_INTRODUCTION = """\
# Command line

Made from the app by `python -m qvl.cli.document > docs/cli.md`; edit the help texts there.

The answer goes to standard output and nothing else does. Exit codes: 0 all is well; 1 something went wrong, a question
of a batch had no answer, or `qvl doctor` found a problem; 2 the request was wrong; 130 ended by Ctrl-C; 143 by SIGTERM;
141 the reader of a pipe went away.

Without `--profile` and `--model` the first of 2b, 7b and 72b that is here runs, else demo. `--model` alone brings the
profile of a published model; any other checkpoint takes the limits and the chat template of `2b`, so name `2b-base` for
a base model. [profiles.md](profiles.md) has the keys of profiles, [messages.md](messages.md) conversations as JSON.

`qvl --version` says what is installed, `qvl --install-completion` lets the shell complete options.
"""

ENVIRONMENT = {
    "QVL_HOME": "The folder of qvl's own models, under `models/`, of the random weights of `qvl bench`, under `bench/`,"
    " and of what was typed in `qvl chat`; by default `qvl` in the platform's folders for caches and for state.",
    "QVL_OFFLINE": "1: use no network, neither for models nor for pictures.",
    "QVL_SOURCE": "Where models are downloaded from, as --source; before the profile's `source`.",
    "QVL_DOWNLOAD_TIMEOUT": "Seconds without a byte after which a connection is given up and made anew; 30.",
    "QVL_DOWNLOAD_TRIES": "Attempts in a row that bring nothing, before the next source is tried; 6.",
    "QVL_CONFIG_HOME": "The folder that holds `profiles/` with your own profiles.",
    "QVL_THREADS": "CPU threads, without --threads; else `OMP_NUM_THREADS`, else one for each core.",
    "QVL_OPS": "`auto` (the native ops where they are built, which is the default), `composed`, or `native`, which "
    "fails where they cannot be had. `qvl doctor` shows what runs.",
    "QVL_CPU_ISA": "The CPU features that the native ops may use, fewer than there are: `portable`, `avx2`, `avxvnni`, "
    "`avx512`, `avx512vnni`, `avx512bf16` or `amx`.",
    "QVL_CUDA_GRAPH": "0 launches the steps of decoding on a GPU one by one instead of replaying a CUDA graph.",
    "QVL_VIDEO_READER": "What decodes clips: `av`, `decord`, or `auto` (PyAV, then decord), which is the default.",
    "QVL_BUILD_NATIVE, QVL_BUILD_DIR": "0: `pip install` builds no native ops; where objects of builds are kept.",
    "CXX, NVCC, CUDA_HOME": "The compilers that build the native ops.",
    "QVL_DEBUG": "1 shows the traceback of an error, as --debug does.",
    "NO_COLOR": "No colours.",
    "HF_HOME, HF_HUB_CACHE": "Where Hugging Face's tools keep what they downloaded; models are found there.",
    "MODELSCOPE_CACHE": "The same for ModelScope's.",
    "PPNLP_HOME": "The same for PaddleNLP's.",
    "HF_ENDPOINT, MODELSCOPE_ENDPOINT, PPNLP_ENDPOINT, AISTUDIO_ENDPOINT": "Another address, such as a mirror's, for "
    "each source.",
    "HF_TOKEN, MODELSCOPE_API_TOKEN, AISTUDIO_ACCESS_TOKEN": "A token for models that are not for everybody; those in "
    "the files that the tools of Hugging Face and AI Studio write are found too.",
}

JSON_KEYS = {
    "text": "The answer, without special tokens and without the stop text.",
    "token_ids": "Its tokens in order, special ones and the one that ended it included.",
    "prompt_tokens": "Tokens of the prompt, pictures and clips included.",
    "image_grid_thw": "For each picture: slices in time (1), rows and columns of 14x14 patches.",
    "video_grid_thw": "For each clip: slices of two frames, rows and columns of patches.",
    "finish_reason": "`stop`: the model or a stop text ended it; `length`: --max-new-tokens or the context did; "
    "`loop`: --stop-loops did.",
    "boxes": "Each with `label`, `box` [x1, y1, x2, y2] in pixels, for a quad its four points as `quad`, and "
    "`picture`, counted from 0 (null: on a clip).",
    "stats": f"Times in seconds, memory in bytes: {', '.join(f'`{field.name}`' for field in fields(Stats))}.",
    "model": "The name or folder of the checkpoint.",
    "profile": "The name of the profile.",
}


DOCTOR_KEYS = {
    "ok": "Whether everything that was asked for will work; the exit code is 1 where it is false.",
    "versions": "By distribution; empty for one that is missed.",
    "system": "The operating system.",
    "cpu": "`model`, `architecture`, `cores`, `threads`, `allowed` threads, the container's `quota` of CPUs or "
    "null, and `extensions`, null where they are not known.",
    "memory": "Bytes: `total`, the container's `limit` or null, `free`, `swap`.",
    "gpus": "Each with `index`, `name`, `memory` and `free` in bytes, `capability`, `driver`.",
    "threads": "`count`, null where the wish cannot be met, and the `reason`.",
    "paddle": "`error` where it does not run; `version`, `cuda`, `cudnn`, its `gpus`, `flags`, the variables that "
    "qvl has `prepared`, and the `device`, `dtype` and `attention` that a run gets.",
    "environment": "The variables that are set and matter.",
    "ops": "`requested`, `built`, the `reason` why not, `instructions`, an `error`, `gpu_reason` why there are "
    "none for a GPU, `graphs` why decode steps are not captured, and `ops`, each with its "
    "`name`, the `body` that runs (`native`, `composed` or `flash`) and the `reason` why no faster one "
    "does.",
    "fits": "Each shape of the profiles on each device, in bytes: `profiles`, `model`, `device`, `dtype`, "
    "`quantize`, `asked`, `context` in tokens, `weights`, `cache`, `vision`, `prefill`, `total`, the "
    "`least` for one picture and its answer, `usable_context` in tokens, `free` and `size` of the device,"
    " and the `verdict`: `full`, `short` (a part of the context), `busy` (not in what is free now) or "
    "`no`.",
    "training": "For a profile of `qvl finetune`: bytes by parts, `total`, `free`, and whether it `fits`; else null.",
    "models": "Each with `id`, `folder`, `bytes`, `keeper`, `state` (`verified`, `unverified`, `incomplete`, "
    "`partial` or `damaged`) and `error`.",
    "store": "The `folder` for models, bytes `free` there, `error`.",
    "asked": "`profile`, `model`, `device`, `dtype`, `quantize`, `cache_dtype` and `threads` as asked for.",
    "problems": "What was asked for and will not work, a line each.",
    "remarks": "What is worth knowing.",
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
        if name == "doctor":
            lines += ["### Keys of --json", "", *_table(DOCTOR_KEYS)]
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
