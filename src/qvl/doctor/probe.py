"""Runs `qvl.doctor.child` and gathers what it found out, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from qvl.errors import PADDLE_MISSING

# Paddle answers in 2 s; a cold disk and a driver that wakes up have been seen to take a minute.
DEADLINE = 180.0

_CHILD = "import sys; sys.path = [p for p in sys.path if p]; from qvl.doctor.child import main; main()"


def ask(question: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The parts of the answer that came, and why no more did: an empty text when all are there."""
    # Not by -m, which would look for modules in the working directory first.
    command = [sys.executable, "-c", _CHILD]
    try:
        done = subprocess.run(
            command, input=json.dumps(question), capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        said, complaint, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        said, complaint, code = _text(late.stdout), "", None
    except OSError as error:
        return [], f"Paddle could not be tried: {error.strerror or error}"
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    if code is None:
        return found, f"Paddle did not answer within {DEADLINE:.0f} s"
    return found, _ending(code, complaint)


def _ending(code: int, complaint: str) -> str:
    """What an exit code and the last line of a traceback mean."""
    if code == 0:
        return ""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "; this build of Paddle needs a processor with AVX" if name == "SIGILL" else ""
        return f"Paddle crashed ({name}){hint}"
    if "No module named 'paddle'" in last:
        return PADDLE_MISSING
    return f"Paddle does not run: {last or f'exit code {code}'}"[:300]


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def nvidia() -> list[dict[str, str]]:
    """The GPUs that NVIDIA's driver knows, whatever Paddle makes of them; none without the driver."""
    fields = ("index", "name", "driver_version", "memory.total", "memory.free", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=os.environ)
    except (OSError, subprocess.SubprocessError):
        return []
    if done.returncode:
        return []
    rows = ([cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines())
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
