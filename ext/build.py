#!/usr/bin/env python3
"""Build the native ops into the package: the only place that knows compilers, architectures and flags.

Run as a program, by setup.py when qvl is installed, and by `qvl.ops.native.build` for someone who installed without a
compiler. Needs a C++17 compiler (CXX, else g++ or clang++) and Paddle; without one of them it says so and ends with
status 3; a failure of the compiler is status 1. Does nothing when the library was built from the same sources, for the
same Paddle and Python.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CANNOT = 3  # exit status: something needed is not here

COMMON = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# In rising order, as in include/qvl/isa.h.
LEVELS_X86 = {
    "avx2": AVX2,
    "avxvnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512vbmi", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
}


# An instruction of each: an assembler that is older than its compiler may know the flags' names and not these.
PROBES = {
    "avx2": "__m256 f(__m256 a) { return _mm256_fmadd_ps(a, a, a); }",
    "avxvnni": "__m256i f(__m256i a) { return _mm256_dpbusd_avx_epi32(a, a, a); }",
    "avx512": "__m512i f(__m512i a) { return _mm512_add_epi32(a, a); }",
    "avx512vnni": "__m512i f(__m512i a) { return _mm512_dpbusd_epi32(a, a, a); }",
    "avx512bf16": "__m512 f(__m512 a, __m512bh b) { return _mm512_dpbf16_ps(a, b, b); }",
    "amx": "void f() { _tile_dpbf16ps(0, 1, 2); }",
}


class CannotBuild(Exception):  # noqa: N818 - not an error of the program
    """Something outside qvl is missing; the message says what."""


class BuildFailed(CannotBuild):
    """The compiler did not like something."""


@dataclass(frozen=True)
class Paddle:
    """The Paddle that the library is built for."""

    version: str
    include: Path
    libs: Path
    core: Path


def find_paddle() -> Paddle:
    if sys.platform != "linux":  # libraries are looked for and linked as they are there
        raise CannotBuild(f"they are built on Linux, not on {sys.platform}")
    os.environ.setdefault("GLOG_minloglevel", "2")
    # Beside this file lies paddle/ with our bindings, which Python would take for a package of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    said = tempfile.SpooledTemporaryFile(mode="w+")  # noqa: SIM115 - its advice on threads, and a missing ccache
    try:
        with contextlib.redirect_stderr(said):
            import paddle
        paddle.base.core.__file__  # noqa: B018 - a namespace of that name is not Paddle
    except (ImportError, AttributeError):
        raise CannotBuild("Paddle is not installed here") from None
    core = Path(paddle.base.core.__file__).parent / "libpaddle.so"
    if not core.exists():
        raise CannotBuild(f"this Paddle has no {core.name} to link with")
    kind = "gpu" if paddle.is_compiled_with_cuda() else "cpu"
    return Paddle(
        f"{paddle.__version__} {kind}", Path(paddle.sysconfig.get_include()), Path(paddle.sysconfig.get_lib()), core
    )


def find_compiler() -> list[str]:
    """The command: CXX may have a launcher before the compiler and flags behind it, such as "ccache g++"."""
    asked = os.environ.get("CXX", "")
    for name in [asked] if asked else ["g++", "clang++", "c++"]:
        words = shlex.split(name)
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    raise CannotBuild(f"CXX={asked} was not found" if asked else "no C++ compiler (g++ or clang++) was found")


def source_hash() -> str:
    """Of everything that decides what the library is, this file included. src/qvl/ops/native.py computes the same."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*")):
        if HERE / "cuda" in path.parents:  # build_cuda.py's
            continue
        if path.suffix in (".h", ".cc") or path == Path(__file__).resolve():
            digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def levels_of(compiler: list[str]) -> dict[str, list[str]]:
    """Levels that this compiler and its assembler can make for this architecture, and their flags."""
    levels: dict[str, list[str]] = {"portable": []}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return levels
    with tempfile.TemporaryDirectory(prefix="qvl-probe-") as folder:
        for name, flags in LEVELS_X86.items():
            probe = [*compiler, *flags, "-x", "c++", "-c", "-", "-o", f"{folder}/{name}.o"]
            text = f"#include <immintrin.h>\n{PROBES[name]}\n"
            if subprocess.run(probe, input=text, text=True, capture_output=True).returncode == 0:
                levels[name] = flags
    return levels


def sources_for(levels: dict[str, list[str]]) -> list[tuple[Path, str | None]]:
    """Every compilation: a file and the level, or None for files compiled once."""
    compilations: list[tuple[Path, str | None]] = []
    for path in sorted([*(HERE / "paddle").glob("*.cc"), *(HERE / "cpu").glob("*.cc")]):
        with path.open(encoding="utf-8") as lines:
            named = re.match(r"// levels: (.+)", lines.readline())
        if named is None:
            compilations.append((path, None))
            continue
        if unknown := set(named.group(1).split()) - {"portable", *LEVELS_X86}:
            raise SystemExit(f"{path.name}: unknown levels {', '.join(sorted(unknown))}")
        compilations += [(path, level) for level in named.group(1).split() if level in levels]
    # Bindings take longest: begin with them.
    return sorted(compilations, key=lambda pair: (pair[0].parent.name != "paddle", str(pair[0])))


def compile_all(compiler: list[str], paddle: Paddle, folder: Path, jobs: int, *, force: bool = False) -> list[Path]:
    """Object files of all compilations; those whose compiler, command and sources did not change are kept, unless
    `force`.
    """
    version = version_of(compiler)
    levels = levels_of(compiler)
    defines = [f"-DQVL_HAS_{name.upper()}" for name in levels if name != "portable"]

    def one(compilation: tuple[Path, str | None]) -> Path:
        source, level = compilation
        command = [*compiler, *COMMON, *defines, "-I", str(HERE / "include")]
        if level is not None:
            command += [*levels[level], f"-DQVL_LEVEL={level}"]
        if source.parent.name == "paddle":
            python = sysconfig.get_paths()["include"]
            for include in (paddle.include, paddle.include / "third_party", Path(python)):
                command += ["-isystem", str(include)]
            command += ["-D_GLIBCXX_USE_CXX11_ABI=1", "-fvisibility-inlines-hidden"]
        key = hashlib.sha256(repr([command, version, paddle.version]).encode())
        for path in [source, *_included(source, set())]:
            key.update(path.read_bytes())
        target = folder / f"{source.parent.name}-{source.stem}-{level or 'once'}-{key.hexdigest()[:16]}.o"
        if force or not target.exists():
            made = target.with_suffix(f".{os.getpid()}.tmp")
            _run([*command, "-c", str(source), "-o", str(made)])
            made.replace(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources_for(levels)))


def _included(source: Path, seen: set[Path]) -> list[Path]:
    """Headers of ours that a file includes, directly or not, in the order met."""
    found = []
    for name in re.findall(r'^\s*#\s*include "([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE):
        for path in (source.parent / name, HERE / "include" / name):
            if path.is_file() and path not in seen:
                seen.add(path)
                found += [path, *_included(path, seen)]
                break
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildFailed(f"the compiler failed:\n{' '.join(command)}\n{done.stdout}{done.stderr}")


def library_name() -> str:
    return f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def up_to_date(output: Path, paddle: Paddle, compiler: list[str]) -> bool:
    """Whether the library is what this would make: another compiler may know of more levels."""
    stamp = output / "_native.json"
    try:
        said = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {"sources": source_hash(), "paddle": paddle.version, "compiler": version_of(compiler)}
    return bool(said == wanted) and (output / library_name()).exists()


def build(output: Path, *, jobs: int | None = None, force: bool = False, say: bool = True) -> bool:
    """Make the library and its stamp in `output`; False when it was up to date. Raises CannotBuild."""
    compiler, paddle = find_compiler(), find_paddle()
    cache = Path(os.environ.get("QVL_BUILD_DIR") or _cache_folder())
    cache.mkdir(parents=True, exist_ok=True)
    with alone(cache / "lock"):  # two environments of one checkout share the objects
        if not force and up_to_date(output, paddle, compiler):
            return False
        _build(output, compiler, paddle, cache, jobs=jobs, force=force, say=say)
    return True


def _build(
    output: Path, compiler: list[str], paddle: Paddle, cache: Path, *, jobs: int | None, force: bool, say: bool
) -> None:
    if say:
        print(f"building the native ops with {name_of(compiler)} ...", file=sys.stderr, flush=True)
    begun, sources = time.monotonic(), source_hash()  # before reading them: one that changes meanwhile shows as newer
    objects = compile_all(compiler, paddle, cache, jobs or os.cpu_count() or 1, force=force)
    output.mkdir(parents=True, exist_ok=True)
    library = output / library_name()
    made = library.with_name(f"{library.name}.{os.getpid()}.tmp")
    link = [*compiler, "-shared", "-o", str(made), *map(str, objects), "-pthread"]
    link += [f"-L{paddle.core.parent}", f"-L{paddle.libs}", "-l:libpaddle.so", "-Wl,--no-as-needed"]
    _run(link)
    made.replace(library)
    stamp = {"sources": sources, "paddle": paddle.version, "compiler": version_of(compiler)}
    (output / "_native.json").write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    for old in cache.glob("*.o"):
        if old not in objects:
            old.unlink(missing_ok=True)
    if say:
        print(f"built {library.name} in {time.monotonic() - begun:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process builds with this lock."""
    with path.open("a") as file:
        with contextlib.suppress(ImportError, OSError):  # Windows; a file system without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache_folder() -> Path:
    return build_folder() / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


def build_folder() -> Path:
    """build/ of a checkout, else the user's own cache: what lies in a folder that all can write to may be anyone's."""
    root = HERE.parent
    if (root / "pyproject.toml").exists() and os.access(root, os.W_OK):
        return root / "build"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qvl" / "build"
    except RuntimeError:  # a user without a home
        return Path(tempfile.mkdtemp(prefix="qvl-build-"))


def name_of(compiler: list[str]) -> str:
    """The command as people know it."""
    return " ".join([Path(compiler[0]).name, *compiler[1:]])


def version_of(compiler: list[str]) -> str:
    lines = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else name_of(compiler)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the native ops of qvl into the package.")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "src" / "qvl", help="folder of the package")
    parser.add_argument("-j", "--jobs", type=int, default=None, help="compilers to run at a time")
    parser.add_argument("-f", "--force", action="store_true", help="build even if nothing changed")
    options = parser.parse_args()
    try:
        build(options.output, jobs=options.jobs, force=options.force)
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except CannotBuild as missing:
        print(f"native ops not built: {missing}\nqvl runs without them, slower.", file=sys.stderr)
        return CANNOT
    return 0


if __name__ == "__main__":
    sys.exit(main())
