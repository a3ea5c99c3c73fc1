"""`qvl doctor`: what this machine can do, and whether what is asked for will work here."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.doctor_view import show
from qvl.cli.infer import PLACED, chosen_profile
from qvl.cli.options import MediaOptions, ModelOptions, flattened, option
from qvl.doctor.wish import Wish
from qvl.errors import QvlError, UsageError
from qvl.profile import Profile, load_profile

if TYPE_CHECKING:
    from qvl.doctor.records import Report


@dataclass(frozen=True)
class WishOptions:
    """What the machine is asked to do."""

    panel: ClassVar[str] = "Will this work here?"

    profile: Annotated[
        str | None, option("--profile", metavar="NAME|FILE", help="A profile; 'qvl profiles' lists them.")
    ] = None
    model: Annotated[
        str | None, option("--model", metavar="NAME|DIR", help="A checkpoint, in place of the profile's.")
    ] = None
    settings: Annotated[
        list[str],
        option("--set", metavar="KEY=VALUE", help="Any key of the profile, such as max_context=4096. Repeatable."),
    ] = field(default_factory=list)
    device: Annotated[
        str | None, option("--device", metavar="auto|cpu|gpu|gpu:N", help="Where to run; auto takes a GPU if any.")
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            metavar="auto|float32|bfloat16|float16",
            help="Of the weights; auto is bfloat16 on a GPU and float32 on a CPU.",
        ),
    ] = None
    quant: Annotated[
        str | None, option("--quant", metavar="none|bf16|int8|int4", help="With weights quantised to this.")
    ] = None
    cache_dtype: Annotated[
        str | None, option("--cache-dtype", metavar="auto|float32|bfloat16|int8", help="Of the KV cache.")
    ] = None
    threads: Annotated[
        int | None,
        option("--threads", min=1, help="CPU threads; else QVL_THREADS, OMP_NUM_THREADS, or one a core."),
    ] = None


@dataclass(frozen=True)
class ReportOptions:
    """How it is said."""

    panel: ClassVar[str] = "Output"

    as_json: Annotated[bool, option("--json", help="Print one JSON object in place of the screen.")] = False
    build: Annotated[
        bool,
        option(
            "--build",
            help="First build the native ops, where something changed; needs a C++ compiler, and for a GPU CUDA's.",
        ),
    ] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="Print what will not work, and nothing else.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def doctor(wish: WishOptions, output: ReportOptions) -> None:
    """Show what this machine can do: versions, devices, memory, ops, which profiles fit, which models are here.

    Exit code 1 when something that was asked for, by a flag or a variable, will not work.
    """
    if output.quiet:
        warnings.simplefilter("ignore")
    with render.manners(render.AnswerWriter(silent=True)):
        wanted = _wish(wish)
        if output.build:
            from qvl.doctor.building import build

            build()
        with render.status("looking at this machine", output.quiet):
            report = _look(wanted)
        if output.as_json:
            render.json_object({"ok": report.ok, **dataclasses.asdict(report)})
        else:
            show(report, only_problems=output.quiet)
        if not report.ok:
            raise typer.Exit(1)


def _wish(options: WishOptions) -> Wish:
    """The request, checked as a run would check it. Raises UsageError for what no machine could do."""
    profile = _profile(options)
    limits = profile if profile is not None else _revised(Profile(), options)
    return Wish(profile, limits.device, limits.dtype, options.threads, limits.quantize, limits.cache_dtype)


def _look(wish: Wish) -> Report:
    try:
        from qvl.doctor.report import diagnose
    except ImportError as error:  # of what every part needs: there is nothing to report with
        raise QvlError(f"qvl's own dependencies are incomplete ({error}); install qvl again") from None
    return diagnose(wish)


def _profile(options: WishOptions) -> Profile | None:
    """The profile with every flag laid over it; None when neither it nor a model or key is named."""
    if options.profile is None and options.model is None and not options.settings:
        return None
    named = load_profile(options.profile, options.settings) if options.profile is not None else None
    if named is None or named.command == "infer":
        same = ("profile", "model", "settings", "device", "dtype", "quant", "cache_dtype", "threads")
        return chosen_profile(ModelOptions(**{name: getattr(options, name) for name in same}), MediaOptions())[0]
    if options.cache_dtype is not None:
        raise UsageError(f"--cache-dtype is of what answers; profile '{options.profile}' is for qvl {named.command}")
    return _revised(named, options)


def _revised(profile: Profile, options: WishOptions) -> Profile:
    for key, flag in {"model": "model", **PLACED}.items():
        if getattr(options, flag) is not None:
            profile = profile.revised({key: getattr(options, flag)}, f"--{flag.replace('_', '-')}")
    return profile
