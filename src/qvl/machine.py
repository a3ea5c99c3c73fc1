"""What this machine is made of and what of it this process may use: processor, memory, control group. No Paddle."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from qvl.cgroup import cgroup_memory as cgroup_memory  # also had from here
from qvl.cgroup import cpu_quota as cpu_quota

_CPUINFO = Path("/proc/cpuinfo")

# The extensions that matter to arithmetic, as the Linux kernel names them and as people do, narrow to wide.
_EXTENSIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Cpu:
    """model: its name. cores: physical ones of the machine. threads: those of the hardware.

    allowed: hardware threads this process may run on. quota: CPUs' worth of time the control group grants; None: all.
    extensions: None where they are not known.
    """

    model: str
    architecture: str
    cores: int
    threads: int
    allowed: int
    quota: float | None
    extensions: tuple[str, ...] | None


@dataclass(frozen=True)
class Memory:
    """Bytes. limit: of the control group, None without one. free: what this process may still take."""

    total: int
    limit: int | None
    free: int
    swap: int


def cpu() -> Cpu:
    threads = os.cpu_count() or 1
    return Cpu(
        model=_cpu_model(),
        architecture=platform.machine(),
        cores=psutil.cpu_count(logical=False) or threads,
        threads=threads,
        allowed=allowed_threads(),
        quota=cpu_quota(),
        extensions=_extensions(),
    )


def memory() -> Memory:
    machine, group = psutil.virtual_memory(), cgroup_memory()
    try:
        swap = int(psutil.swap_memory().total)
    except (OSError, RuntimeError):  # some containers hide it
        swap = 0
    limit = group[0] if group is not None and group[0] < machine.total else None
    return Memory(int(machine.total), limit, free_memory(), swap)


def free_memory() -> int:
    """Bytes that may still be taken, within the limit of the container, if there is one."""
    free, group = int(psutil.virtual_memory().available), cgroup_memory()
    return free if group is None else min(free, max(0, group[0] - group[1]))


def memory_size() -> int:
    """Bytes there would be if nobody else used any."""
    total, group = int(psutil.virtual_memory().total), cgroup_memory()
    return total if group is None else min(total, group[0])


def allowed_threads() -> int:
    """Hardware threads this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once and no more than the control group's time is worth."""
    allowed, quota = allowed_threads(), cpu_quota()
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    return max(1, min(cores, math.ceil(quota)) if quota is not None else cores)


def _cpuinfo(*keys: str) -> str:
    """The first value of any of the keys in /proc/cpuinfo, or nothing."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")


def _cpu_model() -> str:
    name = _cpuinfo("model name", "Model", "Hardware")
    if not name and sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            name = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            name = ""
    return " ".join(name.split()) or platform.processor() or "an unnamed processor"


def _extensions() -> tuple[str, ...] | None:
    flags = set(_cpuinfo("flags", "Features").split())
    return tuple(words for flag, words in _EXTENSIONS.items() if flag in flags) if flags else None
