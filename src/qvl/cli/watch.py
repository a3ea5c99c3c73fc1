"""What a run of `qvl finetune` looks like on stderr while it goes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qvl.cli import render

if TYPE_CHECKING:
    from qvl.training.estimate import Estimate
    from qvl.training.examples import Prepared
    from qvl.training.record import StepRecord
    from qvl.training.run import Answered

# Set for a process whose lines are shown, on a terminal, by the one that started it.
EVERY_UPDATE = "_QVL_EVERY_UPDATE"
_UPDATE = re.compile(r"update \d+/\d+ ")


class LiveLine:
    """A line on stderr that stays in place on a terminal; elsewhere there is a line now and then."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self.live: Any = None

    def __enter__(self) -> LiveLine:
        if render.is_live(self._quiet):
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True, highlight=False, markup=False), auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def repeat(self, line: str) -> None:
        """Show a line that the first process of a run noted. What is not ours stays in its log."""
        said = line.removeprefix("qvl: ")
        if said == line or said.startswith("error: "):
            return
        if self.live is not None and _UPDATE.match(said):
            self.update(said)
        else:
            render.note(said, self._quiet)

    def update(self, line: str) -> None:
        self.live.update(line, refresh=True)


class Watch:
    """Shows a run on stderr: what was found, a line of figures for the updates, what was judged."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._steps = self._start = 0
        self._began = time.monotonic()
        self._line = LiveLine(quiet)
        self._every = EVERY_UPDATE in os.environ

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()

    def prepared(self, prepared: Prepared) -> None:
        for line in prepared.report.lines():
            render.note(line, self._quiet)

    def estimated(self, need: Estimate, learning: int, total: int) -> None:
        parts = ", ".join(f"{part.name} {getattr(need, part.name) / 2**30:.2f}" for part in dataclasses.fields(need))
        render.note(f"{learning / 1e6:.2f} of {total / 1e6:.2f} million parameters learn", self._quiet)
        render.note(f"memory of one device, about {need.total / 2**30:.2f} GiB: {parts}", self._quiet)

    def started(self, steps: int, start: int) -> None:
        self._steps, self._start, self._began = steps, start, time.monotonic()
        if start:
            render.note(f"resuming after update {start} of {steps}", self._quiet)
        self._line.__enter__()

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        render.note(f"update {step}: held-out loss {loss:.4f}{', the best so far' if best else ''}", self._quiet)

    def answered(self, answers: Sequence[Answered]) -> None:
        for one in answers:
            right = "as expected" if one.answer == one.expected else f"expected {_short(one.expected)}"
            render.note(f"{one.sample}: {_short(one.answer)} ({right})", self._quiet)

    def step(self, record: StepRecord) -> None:
        if self._quiet:
            return
        done = record.step - self._start
        left = (time.monotonic() - self._began) / done * (self._steps - record.step)
        line = (
            f"update {record.step}/{self._steps}  loss {record.loss:.4f}  lr {record.learning_rate:.2e}  "
            f"grad {record.grad_norm:.2f}  {record.tokens / record.seconds:.0f} tokens/s  left {_clock(left)}"
        )
        often = record.step == self._steps or done == 1 or done % max(1, (self._steps - self._start) // 20) == 0
        if self._line.live is not None:
            self._line.update(line)
        elif often or self._every:
            render.note(line)


def _short(text: str, limit: int = 80) -> str:
    """A text on one line, in quotes."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return json.dumps(line if len(line) <= limit else line[: limit - 3] + "...", ensure_ascii=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
