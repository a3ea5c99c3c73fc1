"""What the card is, and what it can do at best by its own measure: copying, and a large product."""

from __future__ import annotations

import datetime
import importlib.metadata
import subprocess
from typing import Any

import torch

from tests.gpu.kernels.bench.side import Side
from tests.gpu.kernels.bench.timing import Clock, Failure, Timing


def facts(side: Side, architectures: str) -> dict[str, Any]:
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    common = {"date": date, "torch": torch.__version__, "architectures": architectures, "commit": _commit()}
    common["transformers"] = _version("transformers")
    if not side.real:
        return {"card": "emulated", "driver": "", "cuda": "", "cache": 1 << 16, **common}
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cache": properties.L2_cache_size,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cuda": torch.version.cuda,
        **common,
    }


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    return _said("git", "rev-parse", "--short=10", "HEAD")


def peaks(side: Side, clock: Clock) -> dict[str, float]:
    """bandwidth: bytes a second, read and written, of a copy of a GiB. product: operations a second, in bfloat16."""
    size, n = (1 << 30, 8192) if side.real else (1 << 12, 16)
    source, target = (torch.empty(size // 2, dtype=torch.bfloat16, device=side.where).normal_() for _ in range(2))
    left, right, out = (side.random(n, n).tensor for _ in range(3))
    sides = {"copy": [lambda: target.copy_(source)], "product": [lambda: torch.mm(left, right, out=out)]}
    timings = clock.measure(sides)
    return {
        "bandwidth": 2 * size / _seconds(timings["copy"]),
        "product": 2.0 * n**3 / _seconds(timings["product"]),
    }


def _seconds(timing: Timing | Failure) -> float:
    if isinstance(timing, Failure):
        raise RuntimeError(f"the card's own figures could not be had: {timing.reason}")
    return timing.median / 1e6
