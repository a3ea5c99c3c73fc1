"""The options of `qvl infer`, in groups: each is the record the code is given and the panel that --help shows."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ParameterInfo

from qvl.errors import UsageError

# What --help shows for a value; Typer shows the name of the Python type.
_VALUES = ((int, "N"), (float, "X"), (str, "TEXT"))


def option(
    *names: str,
    min: float | None = None,  # noqa: A002 -- as Typer calls it
    above: float | None = None,
    may_be_empty: bool = False,
    **settings: Any,
) -> Any:
    """An option that is checked here: what Typer says of a number out of bounds differs by its version."""
    return typer.Option(*names, show_default=False, callback=checked(names[0], min, above, may_be_empty), **settings)


def checked(name: str, least: float | None, above: float | None, may_be_empty: bool) -> Callable[[Any], Any]:
    bound = f"of at least {least:g}" if least is not None else f"above {above:g}" if above is not None else ""

    def check(value: Any) -> Any:
        if not may_be_empty and "" in (value if isinstance(value, (list, tuple)) else [value]):
            raise UsageError(f"{name} is empty")
        if bound and value is not None:
            holds = value >= least if least is not None else value > above
            if not (holds and math.isfinite(value)):
                shown, kind = (value, "a whole number") if isinstance(value, int) else (f"{value:g}", "a number")
                raise UsageError(f"{name} is {shown}; expected {kind} {bound}")
        return value

    return check


@dataclass(frozen=True)
class MediaOptions:
    """The pictures and clips, and how they are brought to size."""

    panel: ClassVar[str] = "Pictures and clips"

    media: Annotated[
        list[str],
        typer.Argument(
            help="Pictures and clips in order: files, http(s) URLs, data: URIs, or - for standard input.",
            metavar="MEDIA",
            show_default=False,
            callback=checked("MEDIA", None, None, False),
        ),
    ] = field(default_factory=list)
    video: Annotated[
        list[str],
        option(
            "--video",
            metavar="PATH",
            help="A clip: a file, a folder of frames, a quoted glob of frames, a URL or -. Repeatable; after MEDIA.",
        ),
    ] = field(default_factory=list)
    min_pixels: Annotated[int | None, option("--min-pixels", min=1, help="Enlarge to at least this area.")] = None
    max_pixels: Annotated[
        int | None, option("--max-pixels", min=1, help="Shrink to at most this area; a token covers 28x28 pixels.")
    ] = None
    resized_height: Annotated[
        int | None, option("--resized-height", min=1, help="Resize to this height, with --resized-width.")
    ] = None
    resized_width: Annotated[
        int | None, option("--resized-width", min=1, help="Resize to this width, with --resized-height.")
    ] = None
    fps: Annotated[float | None, option("--fps", above=0, help="Frames to take from a second of a clip.")] = None
    nframes: Annotated[
        int | None, option("--nframes", min=1, help="Frames to take from a whole clip, in place of --fps.")
    ] = None
    max_frames: Annotated[int | None, option("--max-frames", min=1, help="At most this many with --fps.")] = None
    video_start: Annotated[float | None, option("--video-start", min=0, help="Begin a clip at this second.")] = None
    video_end: Annotated[float | None, option("--video-end", min=0, help="End a clip at this second.")] = None
    raw_pixels: Annotated[
        bool, option("--raw-pixels", help="As the reference model: ignore EXIF rotation and drop alpha.")
    ] = False
    add_vision_id: Annotated[
        bool, option("--add-vision-id", help="Number them for the model: 'Picture 1: ', 'Video 1: '.")
    ] = False


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked."""

    panel: ClassVar[str] = "Question"

    prompt: Annotated[
        str | None,
        option(
            "--prompt",
            "-p",
            help="The question; {} places the media, which otherwise come first. - or a pipe: standard input.",
        ),
    ] = None
    system: Annotated[str | None, option("--system", may_be_empty=True, help="The system turn.")] = None
    messages: Annotated[
        str | None,
        option(
            "--messages",
            metavar="FILE",
            help="A whole conversation as JSON, or - for standard input; in place of MEDIA, -p and --system. "
            "Paths in it are relative to the working directory.",
        ),
    ] = None


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and where."""

    panel: ClassVar[str] = "Model"

    profile: Annotated[
        str | None, option("--profile", metavar="NAME|FILE", help="A profile; 'qvl profiles' lists them.")
    ] = None
    model: Annotated[
        str | None, option("--model", metavar="NAME|DIR", help="A checkpoint, in place of the profile's.")
    ] = None
    adapter: Annotated[
        list[str],
        option(
            "--adapter",
            metavar="[NAME=]DIR[:SCALE]",
            help="A LoRA adapter, used without merging. Repeatable; they sum. Without --model: over its own base.",
        ),
    ] = field(default_factory=list)
    settings: Annotated[
        list[str],
        option("--set", metavar="KEY=VALUE", help="Any key of the profile, such as video.fps=1. Repeatable."),
    ] = field(default_factory=list)
    device: Annotated[
        str | None, option("--device", metavar="auto|cpu|gpu|gpu:N", help="Where to run; auto takes a GPU if any.")
    ] = None
    devices: Annotated[
        str | None,
        option("--devices", metavar="0,1,...", help="Split the language model over these GPUs, a process for each."),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            metavar="auto|float32|bfloat16|float16",
            help="Of the weights; auto is bfloat16 on a GPU and float32 on a CPU, which runs no other.",
        ),
    ] = None
    quant: Annotated[
        str | None,
        option("--quant", metavar="none|bf16|int8|int4", help="Quantise the weights as they are loaded."),
    ] = None
    cache_dtype: Annotated[
        str | None, option("--cache-dtype", metavar="auto|float32|bfloat16|int8", help="Of the KV cache.")
    ] = None
    threads: Annotated[
        int | None,
        option("--threads", min=1, help="CPU threads; else QVL_THREADS, OMP_NUM_THREADS, or one a core."),
    ] = None
    no_memory_check: Annotated[
        bool, option("--no-memory-check", help="Run even if it looks too big for the memory.")
    ] = False
    allow_pickle: Annotated[
        bool, option("--allow-pickle", help="Read .pdparams, which can run code of whoever made the file.")
    ] = False


@dataclass(frozen=True)
class SamplingOptions:
    """How the answer is drawn. Without them: the checkpoint's generation_config.json, then the profile."""

    panel: ClassVar[str] = "Answer"

    max_new_tokens: Annotated[int | None, option("--max-new-tokens", min=1, help="End after this many tokens.")] = None
    min_new_tokens: Annotated[
        int | None, option("--min-new-tokens", min=0, help="The end token is not drawn before.")
    ] = None
    temperature: Annotated[float | None, option("--temperature", help="0 is greedy; else 0.001 to 100.")] = None
    top_p: Annotated[float | None, option("--top-p", help="Nucleus; 1 is off.")] = None
    top_k: Annotated[int | None, option("--top-k", help="The k likeliest; 0 is off, 1 is greedy.")] = None
    min_p: Annotated[float | None, option("--min-p", help="A share of the likeliest; 0 is off.")] = None
    repetition_penalty: Annotated[
        float | None, option("--repetition-penalty", help="Over prompt and answer, 0.01 to 100; 1 is off.")
    ] = None
    seed: Annotated[int | None, option("--seed", min=0, help="Draw the same answer again.")] = None
    stop: Annotated[list[str], option("--stop", metavar="TEXT", help="End before this text. Repeatable.")] = field(
        default_factory=list
    )
    ignore_eos: Annotated[bool, option("--ignore-eos", help="Go on to --max-new-tokens.")] = False
    stop_loops: Annotated[
        bool, option("--stop-loops", help="End an answer that repeats the same tokens over and over.")
    ] = False
    speculate: Annotated[
        str | None,
        option(
            "--speculate",
            metavar="auto|on|off",
            help="Draft tokens from what came before and check several at once; the answer stays the same. "
            "auto: for greedy answers, while it is faster.",
        ),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """What was given, under the names of `Sampling`."""
        given = {name: value for name, value in vars(self).items() if value not in (None, [], False)}
        # 0 == False: a temperature of 0 is a choice, the flag left out is not.
        given |= {name: value for name, value in vars(self).items() if value == 0 and not isinstance(value, bool)}
        return {**given, "stop": tuple(self.stop)} if self.stop else given


@dataclass(frozen=True)
class OutputOptions:
    """What is shown beside the answer."""

    panel: ClassVar[str] = "Output"

    as_json: Annotated[bool, option("--json", help="Print one JSON object in place of the text.")] = False
    boxes: Annotated[
        str | None, option("--boxes", metavar="OUT.png", help="Draw the boxes of the answer on the picture.")
    ] = None
    stats: Annotated[bool, option("--stats", help="Tokens, times and memory, on standard error.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress and no warnings.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


class GroupedCommand(TyperCommand):
    """A command whose --help lists its options by group, in plain text.

    Typer does so with rich, which alone takes half of the time that --help may take.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = (p for p in self.get_params(ctx) if p.param_type_name == "argument")
        return [self.options_metavar or "", *(f"[{argument_name(argument)}]" for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                if parameter.param_type_name == "argument":
                    record = (argument_name(parameter), getattr(parameter, "help", None) or "")
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault(panel, []).append(record)
        for panel, records in groups.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def argument_name(parameter: Any) -> str:
    """How help names an argument: `MEDIA...` when there may be several."""
    name = str(parameter.metavar or parameter.name.upper())
    return f"{name}..." if parameter.nargs == -1 else name


def flattened(function: Callable[..., None]) -> Callable[..., None]:
    """Turn a function of option groups into one with a parameter for each option, as Typer wants it."""
    groups = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    parameters = [parameter for group in groups.values() for parameter in _parameters(group)]

    def command(**values: Any) -> None:
        records = {}
        for name, group in groups.items():
            names = [entry.name for entry in dataclasses.fields(group)]
            # Typer hands over None where a list was not given.
            records[name] = group(**{key: values[key] for key in names if values[key] is not None})
        function(**records)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for entry in dataclasses.fields(group):
        base, declared = get_args(hints[entry.name])
        info: ParameterInfo = copy(declared)
        info.rich_help_panel = group.panel
        types = {base, *get_args(base)}
        if info.metavar is None and bool not in types:
            info.metavar = next((shown for kind, shown in _VALUES if kind in types), None)
        default = entry.default if entry.default is not dataclasses.MISSING else []
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(entry.name, kind, default=default, annotation=Annotated[base, info]))
    return parameters
