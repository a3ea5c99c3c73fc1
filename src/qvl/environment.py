"""What has to be set before Paddle is imported: threads, MKL's path on AMD, and the noise it makes.

Paddle reads these once, at import, and starts with a single thread. `prepare` sets them and imports it; the packages
of ours that use Paddle call it first, and the second call does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import warnings
from pathlib import Path

import psutil

from qvl.errors import UsageError

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_prepared = False
_chosen = False  # whether somebody called set_threads, which then stands


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        allowed = os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def set_threads(count: int | None) -> None:
    """Ask for a number of threads (None: `QVL_THREADS`, else `OMP_NUM_THREADS`, else every physical core).

    Raises UsageError for a number below 1, or when Paddle is already imported and it is too late.
    """
    source = "--threads"
    text = str(count) if count is not None else ""
    if not text:
        for source in ("QVL_THREADS", "OMP_NUM_THREADS"):
            text = os.environ.get(source, "")
            if text:
                break
    if not text:
        threads = physical_cores()
    elif text.isdecimal() and int(text) > 0:
        threads = int(text)
    else:
        raise UsageError(f"{source} must be a whole number of at least 1, not {text!r}")
    if count is not None and "paddle" in sys.modules and os.environ.get("OMP_NUM_THREADS") != str(threads):
        raise UsageError("the number of threads cannot change once Paddle is loaded; set QVL_THREADS instead")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    global _chosen
    _chosen = True


def prepare() -> None:
    """Set up the process for Paddle and import it. Idempotent; settings the user made in the environment win."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    if "paddle" not in sys.modules:
        if not _chosen:
            set_threads(None)
        if _is_amd():
            # Paddle's bundled MKL picks a slow path on AMD: 50 GFLOP/s in place of 160 was measured.
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    _keep_freed_memory()
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.filterwarnings("ignore", message=r"No ccache found")
    warnings.filterwarnings("ignore", message=r"Setuptools is replacing distutils")
    _import_quietly()


def _import_quietly() -> None:
    """Import Paddle without its advice against more than one thread, which does not hold for its MKL build."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            import paddle  # noqa: F401
    finally:
        for line in said.getvalue().splitlines(keepends=True):
            if "OMP_NUM_THREADS" not in line:
                sys.stderr.write(line)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of activations instead of giving it back to the system after every op.

    By default each array of more than a few hundred KiB is mapped and unmapped, and the page faults cost more than the
    arithmetic: 6.3 ms in place of 0.8 for a product of two [1024, 5120] arrays was measured. Weights are larger than
    the limit set here and stay mapped one by one. Other C libraries have no such knob and are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)  # the largest glibc takes
    mallopt(_M_TRIM_THRESHOLD, 512 * 1024 * 1024)
    mallopt(_M_TOP_PAD, 16 * 1024 * 1024)


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
