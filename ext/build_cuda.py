#!/usr/bin/env python3
"""Build the ops of a GPU (cuda/) into a library that any program can load: it needs neither Paddle nor Python.

`--emulated` makes one that runs kernels on the CPU, thread by thread, for tests; that takes a C++ compiler (CXX, else
g++ or clang++) instead of CUDA's (NVCC, else the one in CUDA_HOME, else `nvcc`). Ends like build.py: status 3 when
there is no such compiler, status 1 when it failed. Does nothing when nothing changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __package__:
    from . import build as native
else:
    import build as native  # run as a program, its folder comes first

HERE = Path(__file__).resolve().parent
CannotBuild, BuildFailed, CANNOT = native.CannotBuild, native.BuildFailed, native.CANNOT

# What --architectures takes: sm_* is machine code for that card, compute_* is for newer ones to translate.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "compute_90")
ALWAYS = "library"  # the file that every library has
NAME, EMULATED_NAME = "_native_cuda.so", "libqvl_cuda_emulated.so"

# No -ffast-math and no contraction: an emulated result should not depend on the compiler.
EMULATED = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
EMULATED += ["-ftls-model=local-dynamic", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DQVL_EMULATED"]
CUDA = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]


@dataclass(frozen=True)
class Target:
    """What is to be built. `ops` leaves out the files of all others, for work on one of them; or name all sources."""

    output: Path  # a folder
    emulated: bool = False
    architectures: tuple[str, ...] = ARCHITECTURES
    ops: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    lines: bool = (
        False  # of the source, in the machine code, for profilers and sanitizers; makes it three times as large
    )

    @property
    def library(self) -> Path:
        return self.output / (EMULATED_NAME if self.emulated else NAME)

    @property
    def stamp(self) -> Path:
        return self.library.with_suffix(".json")

    @property
    def said_architectures(self) -> str:
        return "emulated" if self.emulated else " ".join(self.architectures)


def find_nvcc() -> list[str]:
    asked = os.environ.get("NVCC", "")
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [asked] if asked else [*(str(Path(home, "bin", "nvcc")) for home in homes if home), "nvcc"]
    for place in [*places, *([] if asked else ["/usr/local/cuda/bin/nvcc"])]:
        if found := shutil.which(place):
            return [found]
    raise CannotBuild(f"NVCC={asked} was not found" if asked else "no CUDA compiler (nvcc) was found")


def _version_of(compiler: list[str]) -> str:
    """nvcc says its name first and its version further down."""
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line for line in said if ", release " in line), said[0] if said else native.name_of(compiler))


def source_hash(*more: Path) -> str:
    """Of everything that decides what the library is."""
    digest = hashlib.sha256()
    kept = [*(HERE / "cuda").rglob("*"), *(HERE / "include").rglob("*"), Path(__file__).resolve()]
    for path in [*sorted(path for path in kept if path.is_file()), *more]:
        digest.update(os.path.relpath(path, HERE).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def sources_of(target: Target) -> list[Path]:
    files = list(target.sources) or sorted((HERE / "cuda").glob("*.cu"))
    if target.ops:
        if unknown := set(target.ops) - {path.stem for path in files}:
            raise CannotBuild(f"there is no {', '.join(f'{name}.cu' for name in sorted(unknown))}")
        files = [path for path in files if path.stem in (*target.ops, ALWAYS)]
    # The longest first, so that no compiler is left to end alone.
    files.sort(key=lambda path: -path.stat().st_size)
    return [*([HERE / "cuda" / "emulated" / "block.cc"] if target.emulated else []), *files]


def command_of(target: Target, compiler: list[str]) -> list[str]:
    if target.emulated:
        how = [*EMULATED, "-x", "c++"]
    else:
        how = [*CUDA, *_codes(target.architectures), *(["-lineinfo"] if target.lines else [])]
    said = target.said_architectures
    return [*compiler, *how, f'-DQVL_CUDA_ARCHITECTURES="{said}"', "-I", str(HERE / "include")]


def _codes(architectures: tuple[str, ...]) -> list[str]:
    """Cards of one generation are compiled as one up to machine code: kernels do not ask which of them it is."""
    generations: dict[str, list[str]] = {}
    for name in architectures:
        generations.setdefault(re.sub(r"\d(\D?)$", r"0\1", name.partition("_")[2]), []).append(name)
    return [f"--generate-code=arch=compute_{number},code=[{','.join(names)}]" for number, names in generations.items()]


def compile_all(target: Target, compiler: list[str], folder: Path, jobs: int) -> list[Path]:
    """Object files; those whose command and sources did not change are kept from last time."""
    command = command_of(target, compiler)
    kind = "emulated" if target.emulated else "-".join(target.architectures)
    version = _version_of(compiler)

    def one(source: Path) -> Path:
        key = hashlib.sha256(repr([command, version]).encode())
        for path in [source, *native._included(source, set())]:
            key.update(path.read_bytes())
        made = folder / f"{source.stem}-{kind}-{key.hexdigest()[:16]}.o"
        if not made.exists():
            partly = made.with_suffix(".tmp")
            native._run([*command, "-c", str(source), "-o", str(partly)])
            partly.replace(made)
            for old in folder.glob(f"{source.stem}-{kind}-*.o"):
                if old != made:
                    old.unlink(missing_ok=True)
        return made

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources_of(target)))


def _link(target: Target, compiler: list[str], objects: list[Path]) -> None:
    made = target.library.with_name(f"{target.library.name}.{os.getpid()}.tmp")
    command = [*compiler, "-shared", "-o", str(made), *map(str, objects)]
    if target.emulated:
        command += ["-pthread", "-Wl,-z,defs"]
    else:
        # CUDA's runtime inside, and out of sight: the program may have another of its own.
        command += ["-cudart", "static", "-Xlinker", "--exclude-libs,ALL", "-Xlinker", "-z,defs"]
        command += [f"-arch={next((name for name in target.architectures if name.startswith('sm_')), 'sm_80')}"]
    native._run(command)
    made.replace(target.library)


def build(target: Target, *, jobs: int | None = None, force: bool = False, say: bool = True) -> bool:
    """Make the library and its stamp; False when it was up to date. Raises CannotBuild.

    Only one process at a time does so in a folder; others wait, and then find it done.
    """
    if target.emulated and sys.platform != "linux":
        raise CannotBuild("kernels run without a GPU on Linux only")
    compiler = native.find_compiler() if target.emulated else find_nvcc()
    folder = _object_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    target.output.mkdir(parents=True, exist_ok=True)
    with native.alone(folder / "lock"):
        stamp = {"sources": source_hash(*target.sources), "architectures": target.said_architectures}
        stamp |= {"ops": list(target.ops), "lines": target.lines, "compiler": _version_of(compiler)}
        if not force and _said(target) == stamp:
            return False
        begun = time.monotonic()
        if say:
            print(f"building the ops of a GPU with {native.name_of(compiler)} ...", file=sys.stderr, flush=True)
        objects = compile_all(target, compiler, folder, jobs or os.cpu_count() or 1)
        _link(target, compiler, objects)
        target.stamp.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        if say:
            print(f"built {target.library.name} in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return True


def _said(target: Target) -> object:
    try:
        return json.loads(target.stamp.read_text(encoding="utf-8")) if target.library.exists() else None
    except (OSError, ValueError):
        return None


def package_folder() -> Path:
    """qvl/, of the checkout or as installed."""
    checkout = HERE.parent / "src" / "qvl"
    return checkout if checkout.exists() else HERE.parent


def _object_folder(target: Target) -> Path:
    """One for each kind: who waits for nvcc to end need not wait for g++ to begin."""
    asked = os.environ.get("QVL_BUILD_DIR")
    kind = ["cuda", *(["emulated"] if target.emulated else []), *(["probe"] if target.sources else target.ops)]
    return (Path(asked) if asked else native.build_folder()) / "-".join(kind)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the ops of a GPU into the package.")
    parser.add_argument("-o", "--output", type=Path, default=None, help="folder of the library")
    parser.add_argument("-j", "--jobs", type=int, default=None, help="compilers to run at a time")
    parser.add_argument("-f", "--force", action="store_true", help="build even if nothing changed")
    parser.add_argument("--emulated", action="store_true", help="for tests without a GPU, into build/")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="of: %(default)s and others")
    parser.add_argument("--ops", default="", help="only these files of cuda/, as in: norm,activation")
    options = parser.parse_args()
    output = options.output or (native.build_folder() if options.emulated else package_folder())
    target = Target(output, options.emulated, _names(options.architectures), _names(options.ops))
    try:
        build(target, jobs=options.jobs, force=options.force)
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except CannotBuild as missing:
        print(f"the ops of a GPU were not built: {missing}", file=sys.stderr)
        return CANNOT
    return 0


def _names(given: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
