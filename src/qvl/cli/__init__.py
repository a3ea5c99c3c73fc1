"""The command line. Nothing heavy is imported before a command needs it, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `qvl` with `arguments` (None: those of the process) and return its exit code."""
    from qvl.cli.app import run

    return run(arguments)
