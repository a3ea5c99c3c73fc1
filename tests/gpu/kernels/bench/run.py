"""Times all of it: what the card can do, decode steps, then op after op, until the time is up."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.gpu.kernels.bench import ops, steps, tables
from tests.gpu.kernels.bench.cases import Rotation, all_cases
from tests.gpu.kernels.bench.facts import facts, peaks
from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.sizes import REAL, TINY
from tests.gpu.kernels.bench.timing import Clock, GraphClock, HostClock

STEP_BATCHES = (1, 8)
SECONDS = 225.0  # what is not begun by then is left out, and said to be
COMPILING = 110.0  # of which torch.compile may take this much


@dataclass(frozen=True)
class Options:
    """only: part of the names of what is timed. stored: where the record goes, besides the last line."""

    on_card: bool
    compiles: bool
    only: str = ""
    stored: Path | None = None


@dataclass
class Bench:
    side: Side
    clock: Clock
    options: Options
    record: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        print(f"{self.passed():6.1f} s  {what}", file=sys.stderr, flush=True)

    def passed(self) -> float:
        return time.monotonic() - self.begun

    def card(self) -> None:
        architectures = self.side.library.qvl_cuda_architectures().decode()
        self.record |= {"facts": facts(self.side, architectures), "peaks": peaks(self.side, self.clock)}
        self.record |= {"steps": [], "cases": [], "left_out": []}
        reached = self.record["peaks"]
        self.say(
            f"{self.record['facts']['card']}: a copy moves {reached['bandwidth'] / 1e9:.0f} GB/s, "
            f"a product in bfloat16 makes {reached['product'] / 1e12:.0f} TFLOP/s"
        )

    def steps(self) -> None:
        sizes = REAL if self.side.real else TINY
        for model in sizes.steps:
            if self.options.only not in f"step {model.name}":
                continue
            for found in steps.measured(self.clock, self.side, model, STEP_BATCHES, sizes.step_context):
                self.record["steps"].append(found)
                said = found.get("reason") or f"{found['median']:.0f} us"
                self.say(f"step {model.name}, {found['side']}, batch {found['batch']}: {said}")
            if self.side.real:
                torch.cuda.empty_cache()

    def ops(self) -> None:
        rotation = Rotation(self.record["facts"]["cache"])
        compiler = ops.Compiler(COMPILING if self.options.compiles else 0.0)
        for case in all_cases(self.side, REAL if self.side.real else TINY):
            if self.options.only not in case.name:
                continue
            if self.side.real and self.passed() > SECONDS:
                self.record["left_out"].append(case.name)
                continue
            found = ops.timed(self.side, self.clock, case, rotation, compiler)
            self.record["cases"].append(found)
            self.say(tables.sentence(found, self.record["peaks"]))

    def refused(self) -> list[str]:
        """What of ours could not be timed, or does not compute what torch does."""
        ours = {tables.name(case): case["sides"]["ours"] for case in self.record["cases"]}
        ours |= {f"step {step['model']}, {step['side']}": step for step in self.record["steps"]}
        return [f"{name}: {found['reason']}" for name, found in ours.items() if "reason" in found]


def run(library: Path, options: Options) -> int:
    """Prints tables, and at last the record in one line. 1 when something of ours could not be timed."""
    bench = Bench(Side(library, on_card=options.on_card), GraphClock() if options.on_card else HostClock(), options)
    _prepare_compiler()
    bench.card()
    try:
        bench.steps()
        bench.ops()
    finally:  # what there is by then is worth having
        bench.record["seconds"] = round(bench.passed(), 1)
        line = json.dumps(bench.record)
        if options.stored is not None:
            options.stored.write_text(line + "\n", encoding="utf-8")
        print("\n".join(tables.markdown(bench.record)))
        print(line, flush=True)
    refused = [each for each in bench.refused() if "transformers" not in each]
    for each in refused:
        print(f"not timed: {each}", file=sys.stderr)
    return 1 if refused else 0


def _prepare_compiler() -> None:
    """Every shape is compiled for itself, however many there are: past its limit torch would run eagerly in silence."""
    import torch._dynamo.config as config

    for name, value in {"automatic_dynamic_shapes": False, "recompile_limit": 512, "cache_size_limit": 512}.items():
        if hasattr(config, name):
            setattr(config, name, value)
