"""What this machine is and what is installed on it, for the record of a run. No Paddle."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from qvl import __version__, machine
from qvl.bench.records import Machine

# Of the hardware threads, kept busy by others: a run is then slower and its figures spread.
_BUSY = 0.3
_DISTRIBUTIONS = ("paddlepaddle", "paddlepaddle-gpu", "numpy")


def this_machine() -> Machine:
    cpu = machine.cpu()
    return Machine(
        cpu=cpu.model,
        architecture=cpu.architecture,
        cores=cpu.cores,
        hardware_threads=cpu.threads,
        allowed=cpu.allowed,
        quota=cpu.quota,
        extensions=cpu.extensions or (),
        memory=machine.memory_size(),
        system=" ".join(filter(None, (platform.system(), platform.release()))),
        load_average=_load_average(),
    )


def busy(here: Machine) -> str | None:
    """What to say of a machine that has other work, or None."""
    if here.load_average is None or here.load_average <= _BUSY * here.allowed:
        return None
    return (
        f"the machine is busy: its load was {here.load_average:.1f} on {here.allowed} CPUs in the last minute; "
        "figures will be too slow and will spread"
    )


def versions() -> dict[str, str]:
    """qvl, Python and what computes, by distribution."""
    found = {"qvl": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows
        return None
