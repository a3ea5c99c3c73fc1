"""`qvl download`: models from the hubs, and what to do with those that are here."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from qvl.cli import render
from qvl.cli.options import flattened, option
from qvl.cli.paths import local
from qvl.errors import QvlError, UsageError

if TYPE_CHECKING:
    from qvl.hub.download import Request
    from qvl.hub.progress import Watcher
    from qvl.hub.store import StoredModel

_MOST_JOBS = 32
_HEADINGS = ("MODEL", "SIZE", "STATE", "SOURCE", "LAST USED", "FOLDER")


@dataclass(frozen=True)
class DownloadOptions:
    """Which models, and from where."""

    panel: ClassVar[str] = "Download"

    names: Annotated[
        list[str],
        typer.Argument(
            help="Models: profiles, short names such as 7b-awq, or hub ids.", metavar="NAME", show_default=False
        ),
    ] = field(default_factory=list)
    source: Annotated[
        str | None,
        option(
            "--source",
            metavar="auto|huggingface|modelscope|bos|aistudio",
            help="Where from; several with commas are tried in that order. Else QVL_SOURCE, else the profile's, else "
            "auto, which tries all in the order above.",
        ),
    ] = None
    folder: Annotated[
        str | None, option("--dir", metavar="DIR", help="The folder for the files of one model, in place of qvl's own.")
    ] = None
    jobs: Annotated[int | None, option("--jobs", min=1, help="Files to fetch at the same time; 4 by default.")] = None
    offline: Annotated[bool, option("--offline", help="Use no network; so does QVL_OFFLINE=1.")] = False


@dataclass(frozen=True)
class KeepingOptions:
    """What to do with models that are here."""

    panel: ClassVar[str] = "Models that are here"

    list_models: Annotated[bool, option("--list", help="Show them: size, state, source, last use and folder.")] = False
    verify: Annotated[
        bool,
        option(
            "--verify",
            help="Read their files again, repair broken ones; without NAME: all that qvl downloaded.",
        ),
    ] = False
    remove: Annotated[bool, option("--rm", help="Remove them, or what was downloaded of them so far.")] = False


@dataclass(frozen=True)
class DownloadOutput:
    """What is shown."""

    panel: ClassVar[str] = "Output"

    as_json: Annotated[bool, option("--json", help="Print JSON in place of text.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress and no remarks.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def download(download: DownloadOptions, keeping: KeepingOptions, output: DownloadOutput) -> None:
    """Download models, and list, check or remove those that are here. The folder of each is printed."""
    if output.quiet:
        warnings.simplefilter("ignore")
    asked = [name for name in ("list_models", "verify", "remove") if getattr(keeping, name)]
    if len(asked) > 1:
        raise UsageError("--list, --verify and --rm do different things; take one")
    if download.folder is not None and len(download.names) > 1:
        raise UsageError("--dir takes the files of one model; name one, or set QVL_HOME for all")
    if keeping.list_models:
        _check_nothing_is_fetched(download)
    with render.manners(render.AnswerWriter(silent=True)):
        if keeping.list_models:
            _list(download, output)
        elif keeping.remove:
            _remove(download, output)
        elif keeping.verify:
            _verify(download, output)
        else:
            _download(download, output)


def _download(options: DownloadOptions, output: DownloadOutput) -> None:
    if not options.names:
        raise UsageError("which model? qvl download NAME, such as 2b; --list shows what is here")
    from qvl.hub.download import download as fetch

    def one(request: Request) -> dict[str, Any]:
        got = fetch(request, watcher)
        if got.was_here:
            watcher.note(f"{got.model} is here already, in {_whose(got.keeper)}")
        if not output.as_json:
            print(got.folder, flush=True)
        return {**vars(got), "folder": str(got.folder), "was_here": got.was_here}

    requests = [_request(name, options) for name in options.names]
    with _watching(output.quiet or output.as_json) as watcher:
        _each(requests, one, output)


def _each(requests: Sequence[Request], one: Callable[[Request], dict[str, Any]], output: DownloadOutput) -> None:
    """Do it to every model, whatever became of those before it, and print what was done where JSON is asked for.

    Raises the error of a single model; of several each is shown, and the exit code is 1, or 2 where all of them were
    wrong requests.
    """
    done: list[dict[str, Any]] = []
    errors: list[QvlError] = []
    for request in requests:
        try:
            done.append(one(request))
        except QvlError as error:
            errors.append(error)
            done.append({"model": request.model, "error": str(error)})
            if len(requests) > 1:
                if output.debug:
                    traceback.print_exc()
                render.error(str(error))
    if output.as_json:
        render.json_object({"models": done})
    if errors and len(requests) == 1:
        raise errors[0]
    if errors:
        wrong = len(errors) == len(requests) and all(error.exit_code == UsageError.exit_code for error in errors)
        raise typer.Exit(UsageError.exit_code if wrong else QvlError.exit_code)


def _verify(options: DownloadOptions, output: DownloadOutput) -> None:
    from qvl.hub.verify import verify

    if options.folder is not None:
        requests = [_request_of_folder(options)]
    else:
        requests = [_request(name, options) for name in options.names or _own_models()]

    def one(request: Request) -> dict[str, Any]:
        checked = verify(request, watcher)
        if not output.as_json:
            what = f"{len(checked.broken)} repaired" if checked.broken else "all right"
            print(f"{checked.model}: {checked.files} files, {what}", flush=True)
        return {**vars(checked), "folder": str(checked.folder)}

    with _watching(output.quiet or output.as_json) as watcher:
        _each(requests, one, output)


def _remove(options: DownloadOptions, output: DownloadOutput) -> None:
    if not options.names and options.folder is None:
        raise UsageError("which model? qvl download --rm NAME; --list shows what is here")
    from qvl.hub.download import readable
    from qvl.hub.remove import remove

    requests = [_request(name, options) for name in options.names] or [_request_of_folder(options)]

    def one(request: Request) -> dict[str, Any]:
        freed = remove(request.model, request.folder)
        if not output.as_json:
            render.note(f"removed {request.model}, {readable(freed)}", output.quiet)
        return {"model": request.model, "bytes": freed}

    _each(requests, one, output)


def _check_nothing_is_fetched(options: DownloadOptions) -> None:
    given = {"--source": options.source is not None, "--jobs": options.jobs is not None, "--offline": options.offline}
    flag = next((name for name, is_given in given.items() if is_given), None)
    if flag is not None:
        raise UsageError(f"--list looks at what is here and fetches nothing; leave out {flag}")


def _list(options: DownloadOptions, output: DownloadOutput) -> None:
    from qvl.hub.names import resolve
    from qvl.hub.places import Place
    from qvl.hub.store import describe, list_models

    if options.folder is not None:
        request = _request_of_folder(options)
        models: tuple[StoredModel, ...] = (describe(request.model, Place(request.target, "qvl")),)
    else:
        wanted = {resolve(name).model for name in options.names}
        models = tuple(model for model in list_models() if not wanted or model.id in wanted)
    if output.as_json:
        render.json_object({"models": [{**vars(model), "folder": str(model.folder)} for model in models]})
        return
    if not models:
        named = ", ".join(options.names)
        wish = f"{named}: not here" if named else "no models here; 'qvl download 2b' gets the smallest"
        render.note(wish, output.quiet)
        return
    rows = [_HEADINGS, *(_row(model) for model in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _row(model: StoredModel) -> tuple[str, ...]:
    import time

    from qvl.hub.download import readable

    used = "-" if model.last_used is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(model.last_used))
    return (model.id, readable(model.bytes), model.state, model.source, used, str(model.folder))


def _request(name: str, options: DownloadOptions) -> Request:
    from qvl.hub.download import JOBS, Request
    from qvl.hub.names import resolve
    from qvl.hub.sources import chosen_order

    named = resolve(name)
    if options.jobs is not None and options.jobs > _MOST_JOBS:
        raise UsageError(f"--jobs is {options.jobs}; expected a whole number of at most {_MOST_JOBS}")
    return Request(
        model=named.model,
        folder=local(options.folder).resolve() if options.folder is not None else None,
        sources=chosen_order(options.source, named.source),
        jobs=options.jobs or JOBS,
        offline=options.offline,
    )


def _request_of_folder(options: DownloadOptions) -> Request:
    """What to do with the model in --dir: its manifest says which one it is, and has to be of the one named."""
    from dataclasses import replace

    from qvl.hub import manifest
    from qvl.hub.names import resolve

    folder = local(options.folder or ".").resolve()
    record = manifest.read(folder)
    if record is None and options.names:
        return _request(options.names[0], options)
    if record is None:
        raise UsageError(f"{folder}: no model that qvl has downloaded is there")
    if options.names and (named := resolve(options.names[0]).model) != record.model:
        raise UsageError(f"{folder}: {record.model} is there, not {named}")
    return replace(_request(record.model, options), model=record.model, folder=folder)


def _own_models() -> list[str]:
    """Every model in qvl's store that was downloaded, whole or not."""
    from qvl.hub.store import list_models

    return [model.id for model in list_models() if model.keeper == "qvl" and model.verified_at is not None]


def _whose(keeper: Any) -> str:
    from qvl.hub.places import KEEPERS

    return "qvl's folder" if keeper == "qvl" else KEEPERS[keeper]


@contextmanager
def _watching(quiet: bool) -> Iterator[Watcher]:
    """Bars where there is a terminal, remarks on stderr, and neither when quiet."""
    from qvl.cli.bars import Bars, Remarks
    from qvl.hub.progress import Watcher

    if quiet:
        yield Watcher()
    elif render.is_live(quiet):
        watcher = Bars()
        try:
            yield watcher
        finally:
            watcher.end()
    else:
        yield Remarks()
