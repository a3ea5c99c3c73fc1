"""What the control groups of this process grant: memory and processor time, of version 2 and of version 1.

A container sees its own group as the root. Elsewhere, as in a job of a cluster or of systemd, it is further down, and
every one above it has a say as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cgroup_memory(root: Path = CGROUP, own: Path = _OWN) -> tuple[int, int] | None:
    """The limit that leaves least and what is taken of it, in bytes; None without a limit."""
    found: list[tuple[int, int]] = []
    for controller, limit, used, prefix in (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        for group in _groups(root, own, controller):
            try:
                most, taken = int((group / limit).read_text()), int((group / used).read_text())
            except (OSError, ValueError):  # absent, or "max"
                continue
            found.append((most, max(0, taken - _page_cache(group / "memory.stat", prefix))))
        if found:
            break
    return min(found, key=lambda pair: pair[0] - pair[1], default=None)


def cpu_quota(root: Path = CGROUP, own: Path = _OWN) -> float | None:
    """How many CPUs' worth of time is granted; None when nothing says."""
    shares = [_share(*_words(group / "cpu.max")) for group in _groups(root, own, "")]
    if not any(shares):
        for group in _groups(root, own, "cpu"):
            shares.append(_share(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")))
    return min((share for share in shares if share is not None), default=None)


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it. controller: of version 1, or "" for version 2."""
    mounted = root / controller
    path = mounted.joinpath(*(part for part in _own_path(own, controller).split("/") if part not in ("", ".", "..")))
    yield path
    while path != mounted:
        path = path.parent
        yield path


def _own_path(own: Path, controller: str) -> str:
    """From lines such as "0::/job/step" (version 2) and "4:cpu,cpuacct:/job" (version 1)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if controller in names.split(","):
            return path
    return ""


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _share(*words: str) -> float | None:
    """Of a quota and its period. None for "max", for -1, which is no limit, and where either is missing."""
    try:
        quota, period = map(int, words)
        return quota / period if quota > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _page_cache(path: Path, prefix: str) -> int:
    """Bytes of files that the kernel keeps while nobody else wants the memory. They count as used by the group."""
    try:
        figures = dict(line.split() for line in path.read_text().splitlines())
        return sum(int(figures.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
    except (OSError, ValueError):
        return 0
