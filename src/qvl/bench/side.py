"""A side that is timed, qvl or a peer: a child process that is started, asked over the wire and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl import errors
from qvl.errors import QvlError

# A side that was told to end and does not is ended.
_PATIENCE = 10.0


class SideError(QvlError):
    """A side could not be started, or ended in mid-run."""


@dataclass(frozen=True)
class Spec:
    """How a side is started and what it is given.

    environment: variables beside this process's. hello, load: what its methods of those names are given. lacking: the
    error for a module that its Python does not have, from that module's name; None: as for any other error.
    """

    name: str
    command: Sequence[str]
    hello: Mapping[str, Any]
    load: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    lacking: Callable[[str], QvlError] | None = None


class SideProcess:
    """The child of a side. Started by `start`, or as a context; what it says on standard error is kept for errors."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.start_seconds = 0.0
        self.hello: dict[str, Any] = {}
        self._child: subprocess.Popen[str] | None = None
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    @property
    def running(self) -> bool:
        return self._child is not None

    def start(self) -> None:
        """Start it and let it import what it needs. Raises SideError, or what it says."""
        begun = time.perf_counter()
        try:
            self._child = subprocess.Popen(
                list(self.spec.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
                env={**os.environ, **self.spec.environment},
            )
        except OSError as error:
            raise SideError(
                f"{self.spec.name}: {self.spec.command[0]} cannot be run ({error.strerror or error})"
            ) from None
        self.hello = self.ask("hello", **self.spec.hello)
        self.start_seconds = time.perf_counter() - begun

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something. Raises the error of ours that it names, else SideError with its words."""
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(OSError):  # it has ended, which the missing answer tells
            self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line.endswith("\n"):
            raise SideError(f"{self.spec.name} ended in the middle of '{do}'{self._ending()}")
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            raise SideError(f"{self.spec.name} said {line[:80].strip()!r} where an answer was expected") from None
        if "error" in said:
            raise self._error(do, **said["error"])
        answer: dict[str, Any] = said["answer"]
        return answer

    def stop(self) -> None:
        """End it; without a child nothing happens."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
        self.stop()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._complaints.close()

    def _error(self, do: str, kinds: Sequence[str], text: str) -> QvlError:
        if "ModuleNotFoundError" in kinds and self.spec.lacking is not None:
            return self.spec.lacking(text)
        for kind in kinds:
            ours = getattr(errors, kind, None)
            # One that is made of more than its words is known by what it is a kind of.
            if isinstance(ours, type) and issubclass(ours, QvlError) and ours.__init__ is QvlError.__init__:
                return ours(text)
        return SideError(f"{self.spec.name}: {do} failed ({kinds[0]}: {' '.join(text.split())[:500]})")

    def _ending(self) -> str:
        """How it ended, and the last thing it said."""
        assert self._child is not None
        self._child.wait()
        code = self._child.returncode
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints.read()[-20_000:].splitlines() if line.strip()]
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if code == -9:
            how += ", as the system does when memory runs out"
        return f" {how}{f': {lines[-1][:300]}' if lines else ''}"
