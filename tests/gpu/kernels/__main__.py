"""The tests of this folder on the GPU of this machine: `python -m tests.gpu.kernels`, from the top of a checkout.

Needs a GPU, torch with CUDA, nvcc, numpy and pytest; neither Paddle nor qvl. Builds what changed for the card at hand.
`--sanitize` runs the small shapes under compute-sanitizer's memcheck and racecheck instead, `--emulated` the same tests
without a GPU. Further arguments are pytest's, as in `-k norm`.

`--bench` times the ops and decode steps beside torch in at most four minutes or so: progress on stderr, tables and at
last a line of JSON on stdout; it takes `--json FILE`, `--only attention` and `--no-compile`. With `--emulated` it goes
through the same code on small shapes, for which a torch without CUDA will do; the times mean nothing then.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# This finds errors only where every tensor is an allocation of its own.
_SMALL = {"QVL_GPU_TESTS_SMALL": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def tests(arguments: list[str], *, emulated: bool, before: list[str], **more: str) -> int:
    # tests/conftest.py needs qvl; this folder's is enough.
    command = [*before, sys.executable, "-m", "pytest", f"--confcutdir={HERE}", str(HERE), *arguments]
    environment = {**os.environ, "QVL_GPU_TESTS": "emulated" if emulated else "cuda", **more}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def sanitize(arguments: list[str]) -> int:
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer is not on PATH; it comes with CUDA", file=sys.stderr)
        return 3
    worst = 0
    for tool in ("memcheck", "racecheck"):
        print(f"under compute-sanitizer's {tool}:", flush=True)
        before = [program, f"--tool={tool}", "--error-exitcode=9", "--target-processes=all"]
        if tool == "racecheck":
            before += ["--kernel-name", "kernel_substring=qvl"]  # torch's own are not the question
        worst = max(worst, tests(["-m", "not slow", *arguments], emulated=False, before=before, **_SMALL))
    return worst


def prepare() -> str | None:
    """What stands in the way of running on a card, or None once the library is built."""
    try:
        import torch
    except ImportError:
        return "torch is not installed here; --emulated does without it and without a GPU"
    if not torch.cuda.is_available():
        return "torch sees no GPU here; --emulated does without"
    os.environ["QVL_GPU_TESTS"] = "cuda"
    from ext.build_cuda import CannotBuild
    from tests.gpu.kernels.libraries import library

    try:
        print(f"{torch.cuda.get_device_name()}: {library()}", flush=True)
    except CannotBuild as missing:
        return str(missing)
    return None


def bench(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed here, and is what is compared with", file=sys.stderr)
        return 3
    from tests.gpu.kernels.bench.run import Options, run
    from tests.gpu.kernels.libraries import library

    compiles = not (options.emulated or options.no_compile)
    return run(library(), Options(not options.emulated, compiles, options.only, options.json))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sanitize", action="store_true", help="memcheck and racecheck")
    parser.add_argument("--emulated", action="store_true", help="on the CPU")
    parser.add_argument("--bench", action="store_true", help="time the ops and decode steps")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="with --bench: also written to FILE")
    parser.add_argument("--only", default="", metavar="NAME", help="with --bench: what has this in its name")
    parser.add_argument("--no-compile", action="store_true", help="with --bench: without torch.compile")
    options, rest = parser.parse_known_args()
    if options.emulated and options.bench:
        return bench(options)
    if options.emulated:
        return tests(rest, emulated=True, before=[])
    if reason := prepare():
        print(reason, file=sys.stderr)
        return 3
    if options.bench:
        return bench(options)
    return sanitize(rest) if options.sanitize else tests(rest, emulated=False, before=[])


if __name__ == "__main__":
    sys.exit(main())
