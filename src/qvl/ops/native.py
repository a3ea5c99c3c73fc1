"""The library of native ops: found, checked and loaded once; `QVL_OPS` says whether it is used.

`QVL_OPS=auto` (the default) uses it where it is and works, and `why_not` says why it is not; `native` raises with that
reason; `composed` leaves it alone. `QVL_CPU_ISA` asks for a lower level of CPU features than the CPU has.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvl import environment
from qvl.errors import DeviceError, UsageError

Mode = Literal["auto", "native", "composed"]

# Raised, here and in ext/paddle/module.h, when the two sides have to change together.
ABI = 1

_PACKAGE = Path(__file__).resolve().parents[1]
_BUILD_HINT = "`qvl doctor --build` makes them"


class NativeOpsError(DeviceError):
    """The native ops were asked for and cannot be had."""


@dataclass(frozen=True)
class Loaded:
    """The module, or None and the reason in words."""

    module: Any
    reason: str


_loaded: Loaded | None = None
_library: Any = None  # what `library` answers, once it is known
_resolved = False
_mode: Mode | None = None  # set by `using`; None: QVL_OPS


def library() -> Any:
    """The module with the native ops, or None where the composed bodies are to be used.

    Cheap: it is asked at every op. Raises NativeOpsError when `QVL_OPS=native` and they cannot be had, UsageError for
    another word or a level this CPU does not have.
    """
    global _library, _resolved
    if not _resolved:
        _library = _resolve()
        _resolved = True
    return _library


def why_not() -> str | None:
    """Why the native ops are not used, in one line for people, or None when they are."""
    if mode() == "composed":
        return "QVL_OPS=composed"
    loaded = _load()
    return None if loaded.module is not None else loaded.reason


def installed() -> tuple[Any, str]:
    """The module, whether it is used or not, or None and the reason in words."""
    loaded = _load()
    return loaded.module, loaded.reason


def mode() -> Mode:
    """What was asked for: by `using`, else by QVL_OPS. Raises UsageError."""
    from qvl.ops import status

    return status.requested() if _mode is None else _mode


@contextlib.contextmanager
def using(wanted: Mode, *, level: str | None = None, threads: int | None = None) -> Iterator[Any]:
    """Within the block: another mode, and if given another level of CPU features or number of threads.

    Gives what `library` then answers. For tests and measurements. Raises as `library` does.
    """
    global _mode, _resolved
    before, _mode, _resolved = _mode, wanted, False
    restore: list[tuple[Any, Any]] = []
    try:
        module = library()
        if module is not None:
            restore = [(module.set_level, module.level()), (module.set_threads, module.threads())]
            if level is not None:
                _set_level(module, level)
            if threads is not None:
                module.set_threads(threads)
        yield module
    finally:
        for setter, value in restore:
            setter(value)
        _mode, _resolved = before, False


def _resolve() -> Any:
    wanted = mode()
    if wanted == "composed":
        return None
    loaded = _load()
    if loaded.module is None and wanted == "native":
        raise NativeOpsError(f"QVL_OPS=native, but there are no native ops: {loaded.reason}")
    return loaded.module


def _load() -> Loaded:
    global _loaded
    if _loaded is None:
        _loaded = _open(_PACKAGE / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", _PACKAGE / "_native.json")
    return _loaded


def _open(file: Path, stamp: Path) -> Loaded:
    """Load the library if it was made for this Paddle and from these sources; loading another could crash."""
    environment.prepare()
    import paddle

    try:
        made = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = None
    if not isinstance(made, dict) or not file.exists():
        return Loaded(None, f"they were not built for this Python; {_BUILD_HINT}")
    here = f"{paddle.__version__} {'gpu' if paddle.is_compiled_with_cuda() else 'cpu'}"
    if made.get("paddle") != here:
        return Loaded(None, f"they were built for Paddle {made.get('paddle')}, this is {here}; {_BUILD_HINT} anew")
    if (sources := source_folder()) is not None and made.get("sources") != source_hash(sources):
        return Loaded(None, f"they are older than their sources; {_BUILD_HINT} anew")
    try:
        loader = importlib.machinery.ExtensionFileLoader("qvl._native", str(file))
        spec = importlib.util.spec_from_file_location("qvl._native", file, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError) as error:
        return Loaded(None, f"{file.name} cannot be loaded ({' '.join(str(error).split())[:200]}); {_BUILD_HINT} anew")
    if module.ABI != ABI:
        return Loaded(None, f"{file.name} is of another version of qvl; {_BUILD_HINT} anew")
    module.set_threads(environment.threads())
    if wanted := os.environ.get("QVL_CPU_ISA"):
        _set_level(module, wanted)
    return Loaded(module, "")


def _set_level(module: Any, level: str) -> None:
    try:
        module.set_level(level)
    except ValueError as error:
        raise UsageError(f"QVL_CPU_ISA: {error}") from None


def source_folder() -> Path | None:
    """ext/ of the checkout or of the installed package, or None."""
    checkout = _PACKAGE.parents[1] / "ext"
    if (checkout / "build.py").exists():
        return checkout
    spec = importlib.util.find_spec("qvl._ext")
    found = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    return next((place for place in found if (place / "build.py").exists()), None)


def source_hash(folder: Path) -> str:
    """What ext/build.py writes into the stamp for these sources."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if folder / "cuda" in path.parents:
            continue
        if path.suffix in (".h", ".cc") or path == folder / "build.py":
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(*, force: bool = False) -> None:
    """Build the native ops into the installed package, with what the compiler says on stderr.

    They are used from the next start on. Raises NativeOpsError: no sources, no compiler, or a failure, in words.
    """
    folder = source_folder()
    if folder is None:
        raise NativeOpsError("the sources of the native ops are not installed")
    command = [sys.executable, str(folder / "build.py"), "--output", str(_PACKAGE), *(["--force"] if force else [])]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise NativeOpsError("the native ops could not be built; the reason is above")
