"""What has to be set before Paddle is imported: threads, MKL's path on AMD, and the noise it makes.

Paddle reads these once, at import, and starts with a single thread. `prepare` sets them and imports it; the packages
of ours that use Paddle call it first, and the second call does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qvl.errors import UsageError
from qvl.machine import physical_cores as physical_cores  # also had from here

# What a shell reports for a program that Ctrl-C ended.
_INTERRUPTED = 130
# What the AVX-512 path of MKL is made of.
_MKL_AVX512 = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_prepared = False
_chosen = False  # whether somebody called set_threads, which then stands


def most_threads() -> int:
    """More than these do not help anybody, and some thousands crash Paddle."""
    return max(64, 4 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Threads:
    """source: who chose the number: "--threads", "QVL_THREADS", "OMP_NUM_THREADS", or "cores"."""

    count: int
    source: str


def choose_threads(count: int | None) -> Threads:
    """What `set_threads` would set, and at whose word. Raises UsageError for a number that cannot be."""
    source, text = ("QVL_THREADS", os.environ.get("QVL_THREADS", "")) if count is None else ("--threads", str(count))
    most = most_threads()
    if not text:
        threads = _openmp_threads(most)
        return Threads(physical_cores(), "cores") if threads is None else Threads(threads, "OMP_NUM_THREADS")
    if not (text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise UsageError(f"{source} must be a whole number from 1 to {most}, not {text[:40]!a}")
    return Threads(int(text), source)


def set_threads(count: int | None) -> None:
    """Ask for a number of threads (None: `QVL_THREADS`, else `OMP_NUM_THREADS`, else every physical core).

    Raises UsageError for a number below 1 or above `most_threads`, or when Paddle is imported and it is too late.
    """
    threads = choose_threads(count).count
    if count is not None and "paddle" in sys.modules and os.environ.get("OMP_NUM_THREADS") != str(threads):
        raise UsageError("the number of threads cannot change once Paddle is loaded; set QVL_THREADS instead")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    global _chosen
    _chosen = True


def threads() -> int:
    """The number of threads that was chosen: the ops of ours, OpenMP and MKL all use it. Raises UsageError."""
    if not _chosen:
        set_threads(None)
    return _openmp_threads(most_threads()) or physical_cores()


def _openmp_threads(most: int) -> int | None:
    """The first number of OMP_NUM_THREADS that is of use. "2,4" is one for each level of nesting; it is not ours."""
    numbers = (part.strip() for part in os.environ.get("OMP_NUM_THREADS", "").split(","))
    useful = (int(part) for part in numbers if part.isdecimal() and len(part) < 10)
    return next((number for number in useful if 1 <= number <= most), None)


def prepare() -> None:
    """Set up the process for Paddle and import it. Idempotent; settings the user made in the environment win."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    if "paddle" not in sys.modules:
        if not _chosen:
            set_threads(None)
        if (path := _mkl_path()) is not None:
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", path)
        # OpenMP's threads spin for 200 ms after each of Paddle's ops, on the cores that the native ops need next.
        os.environ.setdefault("KMP_BLOCKTIME", "1")
    _keep_freed_memory()
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.filterwarnings("ignore", message=r"No ccache found")
    warnings.filterwarnings("ignore", message=r"Setuptools is replacing distutils")
    _import_quietly()


def _import_quietly() -> None:
    """Import Paddle without its advice against more than one thread, which does not hold for its MKL build."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _ending_at_once(), _holding_sigterm():
            import paddle

            # Its handler prints a C++ trace to stdout when the process is told to end.
            paddle.disable_signal_handler()
    finally:
        for line in said.getvalue().splitlines(keepends=True):
            if "OMP_NUM_THREADS" not in line:
                sys.stderr.write(line)


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process, silent, where KeyboardInterrupt would come out of Paddle as ImportError or get lost.

    Only where Ctrl-C is still Python's own, whoever has set a handler knows better; and not under a prompt or in a
    notebook, of which more than the import would be lost.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and not hasattr(sys, "ps1")
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _holding_sigterm() -> Iterator[None]:
    """Let SIGTERM wait until Paddle's handler for it is gone, and whoever handled it before do so again."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        handler = signal.getsignal(signal.SIGTERM)  # as Python remembers it
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _mkl_path() -> str | None:
    """What has Paddle's bundled MKL take its fast path on an AMD CPU: "7" with AVX-512, else "5"; None on others.

    It looks at the maker before it looks at what the CPU can do. On two Zen 5 cores float32 products reach 95 GFLOP/s
    by its own choice, 255 with "5" and 485 with "7".
    """
    told = _cpu_told()
    if "AuthenticAMD" not in told:
        return None
    flags = next((line.split() for line in told.splitlines() if line.startswith("flags")), [])
    return "7" if _MKL_AVX512.issubset(flags) else "5"


def _cpu_told() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
