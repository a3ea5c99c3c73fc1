"""One op at a time: operands, a look at whether torch computes the same, and times in turns."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu.kernels.bench.cases import Case, Operands, Rotation
from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.timing import Clock, Failure

# Compiling takes seconds each time, so only what tells most is.
COMPILED = ("2B", "7B", "vision", "tiny")
# Of the largest number: further apart than this, two ways to compute in bfloat16 are not the same computation.
APART = 0.03


@dataclasses.dataclass
class Compiler:
    """torch.compile, as long as there is time for it. seconds: left in all."""

    seconds: float

    def __call__(self, case: Case, operands: Operands) -> Callable[..., Any] | None:
        if case.compiled is None or case.model not in COMPILED or self.seconds <= 0:
            return None
        begun = time.monotonic()
        try:
            made: Callable[..., Any] = torch.compile(case.compiled, dynamic=False, fullgraph=True)
            made(*operands.tensors)
        except Exception as error:  # its own trouble; the rest is timed all the same
            print(f"torch.compile of {case.name}: {error}", file=sys.stderr)
            return None
        finally:
            self.seconds -= time.monotonic() - begun
        return made


def timed(side: Side, clock: Clock, case: Case, rotation: Rotation, compiler: Compiler) -> dict[str, Any]:
    """A record; where it could not be had, `ours` of its sides has a reason."""
    try:
        return _timed(side, clock, case, rotation, compiler)
    except Exception as error:  # such as too little memory for this one
        if side.real:
            torch.cuda.empty_cache()
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        return _record(case, {"ours": Failure(said)})


def _timed(side: Side, clock: Clock, case: Case, rotation: Rotation, compiler: Compiler) -> dict[str, Any]:
    sets = [case.make() for _ in range(rotation.sets(case))]
    functions = dict(case.peers)
    if compiled := compiler(case, sets[0]):
        functions["compiled"] = compiled
    apart = {name: _apart(side, function, case.make()) for name, function in functions.items()}
    sides: dict[str, list[Callable[[], Any]]] = {"ours": [operands.ours for operands in sets]}
    for name, function in functions.items():
        sides[name] = [_bound(function, operands.tensors) for operands in sets]
    record = _record(case, clock.measure(sides)) | {"sets": len(sets)}
    record["apart"] = {name: value for name, value in apart.items() if value is not None}
    worst = max(record["apart"].values(), default=0.0)
    if not worst <= APART:
        record["sides"]["ours"] = {"reason": f"results are apart by {worst:.2g} of the largest"}
    return record


def _record(case: Case, timings: dict[str, Any]) -> dict[str, Any]:
    named = {name: getattr(case, name) for name in ("op", "model", "shape", "bytes", "flops")}
    return {**named, "sides": {name: dataclasses.asdict(timing) for name, timing in timings.items()}}


def _bound(function: Callable[..., Any], tensors: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: function(*tensors)


def _apart(side: Side, function: Callable[..., Any], operands: Operands) -> float | None:
    """How far torch's results are from ours, of the largest; None where they are of different numbers."""
    if not operands.results:
        return None
    try:
        made = function(*operands.tensors)
    except Exception:  # the clock says why
        return None
    theirs = [x.float().clone() for x in (made if isinstance(made, tuple) else (made,))]
    side.wait()
    operands.ours()
    side.wait()
    worst = 0.0
    for ours, other in zip(operands.results, theirs, strict=True):
        worst = max(worst, float((ours.float() - other).abs().max() / other.abs().max()))
        if not ours.isfinite().all():
            return float("inf")
    return worst
