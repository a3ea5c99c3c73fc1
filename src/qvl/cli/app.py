"""The Typer app, and the one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

from qvl.cli import render, streams

render.end_imports_at_once()  # before the imports that take a while

import typer  # noqa: E402

from qvl import __version__  # noqa: E402
from qvl.cli import bench, doctor, download, finetune, infer, merge_lora, plan, profiles, quantize  # noqa: E402
from qvl.cli.chat import command as chat  # noqa: E402
from qvl.cli.options import GroupedCommand  # noqa: E402
from qvl.errors import PADDLE_MISSING, DeviceError, QvlError  # noqa: E402

app = typer.Typer(
    name="qvl",
    help="Run Qwen2-VL on PaddlePaddle: questions about pictures and clips, answered here.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich is slow to import, and reads "[...]" in a help text as markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("infer", cls=GroupedCommand)(infer.infer)
app.command("chat", cls=GroupedCommand)(chat.chat)
app.command("finetune", cls=GroupedCommand)(finetune.finetune)
app.command("merge-lora", cls=GroupedCommand)(merge_lora.merge_lora)
app.command("quantize", cls=GroupedCommand)(quantize.quantize)
app.command("download", cls=GroupedCommand)(download.download)
app.command("doctor", cls=GroupedCommand)(doctor.doctor)
app.command("bench", cls=GroupedCommand)(bench.bench)
app.command("plan", cls=GroupedCommand)(plan.plan)
app.command("profiles", cls=GroupedCommand)(profiles.profiles)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the app and return the exit code: 0, 1 for what went wrong, 2 for a wrong request, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    # Looked for by hand, since the errors of reading the command line are to be shown in full as well.
    debug = "--debug" in argv or os.environ.get("QVL_DEBUG", "0") not in ("", "0")
    streams.open_streams()
    streams.forgiving_stdout()
    with warnings.catch_warnings(), streams.guarded_streams():
        warnings.showwarning = render.show_warning
        try:
            code = typer.main.get_command(app).main(args=argv, prog_name="qvl", standalone_mode=False)
            sys.stdout.flush()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        except BrokenPipeError:
            streams.silence(sys.stdout)
            return render.BROKEN_PIPE
        except (KeyboardInterrupt, typer.Abort):
            return render.INTERRUPTED
        except Exception as error:
            if debug:
                import contextlib
                import traceback

                with contextlib.suppress(OSError):
                    traceback.print_exc()
            return _report(error, debug)
    return code if isinstance(code, int) else 0


def _report(error: Exception, debug: bool) -> int:
    """One line on stderr; the exit code."""
    if isinstance(error, QvlError):
        render.error(str(error))
        return error.exit_code
    if hasattr(error, "format_message"):  # Click's own errors, which Typer imports from changing places
        render.error(_usage(error))
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, ModuleNotFoundError) and error.name == "paddle":
        render.error(PADDLE_MISSING)
        return DeviceError.exit_code
    hint = "" if debug else " (not foreseen; --debug shows where)"
    text = str(error)
    render.error(f"{type(error).__name__}{': ' if text else ''}{text}{hint}")
    return 1


# Some versions of Typer have pydantic convert values, and show its words.
_KINDS = {"integer": "a whole number", "number": "a number"}
_PYDANTIC = re.compile(r"Input should be a valid (integer|number)\b.*")


def _usage(error: Any) -> str:
    message = _PYDANTIC.sub(lambda found: f"expected {_KINDS[found[1]]}", str(error.format_message()))
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')} (see '{context.command_path} --help')" if context else message


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"qvl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 -- its callback does the work
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[  # noqa: ARG001 -- looked for by `run`
        bool, typer.Option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")
    ] = False,
) -> None:
    """Run Qwen2-VL on PaddlePaddle: questions about pictures and clips, answered here."""
    if context.invoked_subcommand is None:
        print(context.get_help())
