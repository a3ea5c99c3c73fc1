"""`qvl bench` from a profile to a record: weights found or made, sides started, rows put into a record."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qvl.bench import against, here, weights
from qvl.bench.against import Peer, Placed
from qvl.bench.question import Question, write_picture
from qvl.bench.records import Record, Side, Watcher, compare
from qvl.bench.run import Asked, Outcome, run
from qvl.bench.side import SideProcess, Spec
from qvl.errors import CheckpointError
from qvl.hub.locate import locate
from qvl.profile import Profile


@dataclass(frozen=True)
class Grid:
    """contexts: tokens in the cache when decoding begins. batches: answers at a time."""

    contexts: Sequence[int]
    batches: Sequence[int]
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Request:
    """What is to be timed. random: with random weights of the model's shape. threads: None: as always chosen."""

    profile: Profile
    question: Question
    grid: Grid
    random: bool = False
    adapters: Sequence[str] = ()
    threads: int | None = None
    check_memory: bool = True
    peer: Peer | None = None


def measure(request: Request, watcher: Watcher) -> Record:
    """Time it. Raises QvlError, and MemoryLimitError before any weight is made or read."""
    date, machine = here.now(), here.this_machine()
    remarks: list[str] = []

    def remark(text: str) -> None:
        remarks.append(text)
        watcher.remark(text)

    if (busy := here.busy(machine)) is not None:
        remark(busy)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvl-bench-")))
        question = _question(request.question, scratch)
        checked = _check(request, question, scratch)
        profile = _with_weights(request, watcher)
        asked = _asked(request, question, checked["text"])
        specs = [_own(request, profile)]
        if request.peer is not None:
            placed = _placed(request, profile, checked)
            specs.append(against.spec(request.peer, placed, profile, checked["threads"]))
            _try(specs[-1])
        outcome = run(specs, asked, watcher)
    if len(set(outcome.prompt_tokens)) > 1:
        remark(f"the prompts differ: {' and '.join(map(str, outcome.prompt_tokens))} tokens")
    return Record(
        kind="model",
        date=date,
        machine=machine,
        threads=checked["threads"],
        versions=here.versions(),
        settings=_settings(request, checked),
        sides=_sides([spec.name for spec in specs], outcome),
        turns=outcome.turns if request.peer is not None else None,
        rows=outcome.rows,
        comparison=compare(*outcome.answers) if len(outcome.answers) == 2 else None,
        remarks=remarks,
    )


def _question(question: Question, scratch: Path) -> dict[str, Any]:
    """As `Own.check` takes it, with the picture as a file."""
    path = None
    if question.picture is not None:
        path = scratch / "picture.png"
        write_picture(question.picture, path)
    return {"path": path and str(path), "text_tokens": question.text_tokens, "new_tokens": question.new_tokens}


def _check(request: Request, question: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Lay the question out, and see that it would fit, in a child that then ends: what it took does not count."""
    profile = request.profile
    if request.random:
        folder = scratch / "shape"
        weights.write_small_files(folder, weights.shape_of(profile.model))
        profile = replace(profile, model=str(folder))
    else:
        _present(profile.model)
    spec = _own(request, profile)
    with SideProcess(spec) as process:
        process.start()
        return {**process.ask("check", question=question, **spec.load), "threads": process.hello["threads"]}


def _present(model: str) -> None:
    try:
        locate(model)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --random-weights times its shape without it") from None


def _with_weights(request: Request, watcher: Watcher) -> Profile:
    profile = request.profile
    if not request.random:
        return profile
    folder = weights.random_folder(profile.model, weights.shape_of(profile.model), watcher)
    return replace(profile, model=str(folder))


def _own(request: Request, profile: Profile) -> Spec:
    return against.own(profile, list(request.adapters), request.threads, check_memory=request.check_memory)


def _try(spec: Spec) -> None:
    """Whether the peer is there at all, before qvl's side takes its time."""
    with SideProcess(spec) as process:
        process.start()


def _asked(request: Request, question: dict[str, Any], text: str) -> Asked:
    grid = request.grid
    return Asked(
        path=question["path"],
        text=text,
        new_tokens=request.question.new_tokens,
        contexts=grid.contexts,
        batches=grid.batches,
        repeats=grid.repeats,
        warmup=grid.warmup,
    )


def _placed(request: Request, profile: Profile, checked: dict[str, Any]) -> Placed:
    longest = max([checked["prompt_tokens"], *request.grid.contexts]) + request.question.new_tokens
    return Placed(locate(profile.model), checked["device"], checked["dtype"], longest + 8)


def _sides(names: Sequence[str], outcome: Outcome) -> list[Side]:
    sides = []
    for name, hello, tokens, ids in zip(names, outcome.hellos, outcome.prompt_tokens, outcome.answers, strict=True):
        details = {key: value for key, value in hello.items() if key != "versions"}
        sides.append(Side(name, hello["versions"], {**details, "prompt_tokens": tokens, "token_ids": ids}))
    return sides


def _settings(request: Request, checked: dict[str, Any]) -> dict[str, Any]:
    profile, grid, peer = request.profile, request.grid, request.peer
    return {
        "profile": profile.name,
        "model": profile.model,
        "random_weights": request.random,
        # Those that are about how numbers are kept, as far as this version has them.
        **{key: value for key, value in asdict(profile).items() if key in ("quantize", "cache_dtype")},
        "device": checked["device"],
        "dtype": checked["dtype"],
        "adapters": list(request.adapters),
        "question": {
            **request.question.to_json(),
            "prompt_tokens": checked["prompt_tokens"],
            "vision_tokens": checked["vision_tokens"],
        },
        "contexts": list(grid.contexts),
        "batches": list(grid.batches),
        "repeats": grid.repeats,
        "warmup": grid.warmup,
        "against": peer and peer.name,
        "peer_model": peer and peer.model,
    }
