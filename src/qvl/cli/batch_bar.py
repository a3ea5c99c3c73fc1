"""The progress of a batch on a terminal: how many are written, how fast, and how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task
from rich.text import Text

from qvl.cli.batch_run import Count, Run


class Pace:
    """How fast records are written since a model is loaded, over all that time.

    rich looks at the last half minute, in which there may be no record at all, or a bunch of them: several join
    together, and lines wait for their turn.
    """

    def __init__(self, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        """before: records that were written already, and took none of the time."""
        self._before, self._clock = before, clock
        self._begun = self._latest = clock()
        self._done = 0

    def count(self, written: int) -> None:
        """Note that so many are written in all."""
        self._done, self._latest = written - self._before, self._clock()

    @property
    def rate(self) -> float | None:
        """Records a second; None as long as there was none."""
        seconds = self._latest - self._begun
        return self._done / seconds if self._done > 0 and seconds > 0 else None

    def left(self, total: int) -> float | None:
        """Seconds until `total` are written; None as long as there is no rate."""
        rate = self.rate
        if rate is None:
            return None
        rest, now = total - self._before - self._done, self._clock()
        # A count-down, and no less than it would be if the next record were written this moment: one may take long.
        overdue = (rest - 1) * (now - self._begun) / (self._done + 1)
        return max(rest / rate - (now - self._latest), overdue, 0.0)


class _Words(ProgressColumn):
    """What a function says whenever the bar is drawn."""

    def __init__(self, say: Callable[[], str], style: str = "") -> None:
        super().__init__()
        self._say, self._style = say, style

    def render(self, task: Task) -> Text:  # noqa: ARG002
        return Text(self._say(), self._style)


@contextlib.contextmanager
def progress(run: Run, console: Console | None = None) -> Iterator[None]:
    """Show the run on stderr, or where `console` writes, from now, when its model is loaded, to the end."""
    pace = Pace(run.count.written)
    tickets = run.job.records.tickets
    total = None if tickets is None else len(tickets)
    columns = (
        _Words(lambda: "answering"),
        BarColumn(),
        MofNCompleteColumn(),
        _Words(lambda: rate_text(pace.rate), "progress.data.speed"),
        _Words(lambda: "" if total is None else left_text(pace.left(total)), "progress.remaining"),
        _Words(lambda: f"{run.count.failed} failed" if run.count.failed else ""),
    )
    # rich would send what goes to stdout to its own console, which is stderr.
    with Progress(*columns, console=console or Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total, completed=run.count.written)

        def show(count: Count) -> None:
            pace.count(count.written)
            bar.update(task, completed=count.written)

        run.on_written = show
        yield


def rate_text(rate: float | None) -> str:
    """Records a second, a minute or an hour, whichever says most."""
    if rate is None:
        return ""
    for seconds, unit in ((1, "s"), (60, "min")):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f}/{unit}"
    return f"{rate * 3600:.1f}/h"


def left_text(seconds: float | None) -> str:
    """As a clock shows it; dashes as long as nobody knows."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
