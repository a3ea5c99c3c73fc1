"""The options of `qvl infer` that make one run of many questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from qvl.cli.options import option
from qvl.errors import UsageError


@dataclass(frozen=True)
class BatchOptions:
    """Many questions in one run."""

    panel: ClassVar[str] = "Many questions"

    batch: Annotated[
        str | None,
        option("--batch", metavar="FILE", help="Questions as JSON lines, or - for standard input; see docs/batch.md."),
    ] = None
    each: Annotated[
        bool, option("--each", help="Ask -p about each of MEDIA on its own; a folder stands for all that is in it.")
    ] = False
    output: Annotated[
        str | None,
        option(
            "--output",
            "-o",
            metavar="FILE",
            help="Answers as JSON lines; a run that was ended early goes on. Without it, or -: standard output.",
        ),
    ] = None
    batch_size: Annotated[
        int | None, option("--batch-size", min=1, help="Answers under way at a time; 8 without it.")
    ] = None
    strict: Annotated[bool, option("--strict", help="Stop at the first question that cannot be answered.")] = False
    unordered: Annotated[
        bool, option("--unordered", help="Write answers as they are finished, not in the order of the questions.")
    ] = False
    retry: Annotated[
        bool, option("--retry", help="Run again what failed in -o or has changed since; keep the rest.")
    ] = False
    restart: Annotated[bool, option("--restart", help="Run everything anew, over what -o holds.")] = False

    @property
    def wanted(self) -> bool:
        """Whether this run is one of many questions. Raises UsageError for options that only such a run has."""
        if self.batch is not None and self.each:
            raise UsageError("--batch and --each exclude each other")
        if self.batch is not None or self.each:
            return True
        given = {
            "--output": self.output is not None,
            "--batch-size": self.batch_size is not None,
            "--strict": self.strict,
            "--unordered": self.unordered,
            "--retry": self.retry,
            "--restart": self.restart,
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise UsageError(f"{name} goes with --batch FILE or --each")
        return False
