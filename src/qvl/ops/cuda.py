"""The library of kernels for GPUs: found, checked and opened once, when a tensor on a GPU or `qvl doctor` asks for it.

`QVL_OPS` means here what it means for the ops of a CPU (`native`), whose library also has the bindings of these: auto
uses them where they are and work, native raises with the reason where they cannot be had, composed leaves them alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.ops import native
from qvl.ops.native import NativeOpsError

if TYPE_CHECKING:
    from qvl.ops.cuda_body import Body

NAME = "_native_cuda.so"
_PACKAGE = Path(__file__).resolve().parents[1]
_OLDEST = 8  # kernels are compiled for Ampere and later


@dataclass(frozen=True)
class Opened:
    """The ops, or None and the reason in words."""

    body: Body | None
    reason: str


_possible: bool | None = None  # whether a tensor may be on a GPU at all
_opened: Opened | None = None
_emulated: Body | None = None


def possible() -> bool:
    """Whether this Paddle can have tensors on a GPU. Cheap: it is asked at every op."""
    global _possible
    if _emulated is not None:
        return True
    if _possible is None:
        import paddle

        _possible = bool(paddle.is_compiled_with_cuda())
    return _possible


def emulated() -> bool:
    """Whether tensors on the CPU stand for such on a GPU, see `emulating`."""
    return _emulated is not None


def library() -> Body | None:
    """The ops of a GPU, or None where the composed bodies are to be used.

    Raises NativeOpsError when `QVL_OPS=native` and they cannot be had.
    """
    module = native.library()
    if module is None:
        return None
    if _emulated is not None:
        return _emulated
    opened = _open_once(module)
    if opened.body is None and native.mode() == "native":
        raise NativeOpsError(f"QVL_OPS=native, but there are no native ops for a GPU: {opened.reason}")
    return opened.body


def why_not() -> str | None:
    """Why the ops of a GPU are not used, in one line for people, or None when they are."""
    if native.mode() == "composed":
        return "QVL_OPS=composed"
    return installed().reason or None


def installed() -> Opened:
    """The ops of a GPU, whether they are used or not, or why there are none."""
    if _emulated is not None:
        return Opened(_emulated, "")
    module, reason = native.installed()
    return Opened(None, reason) if module is None else _open_once(module)


@contextlib.contextmanager
def emulating(path: str | Path) -> Iterator[Body]:
    """Within the block tensors on the CPU take the bodies of a GPU, run by the emulated library. For tests.

    Raises NativeOpsError where the bindings were not built, RuntimeError for a library that does not fit them.
    """
    global _emulated
    module, reason = native.installed()
    if module is None:
        raise NativeOpsError(reason)
    from qvl.ops.cuda_body import Body

    before, body = _emulated, Body(module, module.CudaLibrary(str(path)))
    if not body.emulated:
        raise ValueError(f"{path} is for a GPU")
    _emulated = body
    try:
        yield body
    finally:
        _emulated = before


def _open_once(module: Any) -> Opened:
    global _opened
    if _opened is None:
        _opened = _open(module, _PACKAGE / NAME)
    return _opened


def _open(module: Any, file: Path) -> Opened:
    import paddle

    if not possible():
        return Opened(None, "this is Paddle's CPU build")
    if not file.exists():
        return Opened(None, "they were not built; `qvl doctor --build` makes them where CUDA's compiler is")
    if (sources := native.source_folder()) is not None and _made_from(file) != source_hash(sources):
        return Opened(None, "they are older than their sources; `qvl doctor --build` makes them anew")
    if not paddle.device.cuda.device_count():
        return Opened(None, "there is no GPU here")
    major, minor = paddle.device.cuda.get_device_capability()
    if major < _OLDEST:
        return Opened(None, f"they need compute capability {_OLDEST}.0, this GPU has {major}.{minor}")
    from qvl.ops.cuda_body import Body

    try:
        return Opened(Body(module, module.CudaLibrary(str(file))), "")
    except RuntimeError as error:
        return Opened(None, f"{' '.join(str(error).split())[:200]}; `qvl doctor --build` makes them anew")


def _made_from(file: Path) -> str | None:
    try:
        said = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said.get("sources") if isinstance(said, dict) else None


def source_hash(folder: Path) -> str:
    """What ext/build_cuda.py writes into the stamp for these sources."""
    digest = hashlib.sha256()
    kept = [*(folder / "cuda").rglob("*"), *(folder / "include").rglob("*"), folder / "build_cuda.py"]
    for path in sorted(path for path in kept if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(*, force: bool = False) -> str:
    """Build the library into the package, where Paddle is a GPU build; with what the compiler says on stderr.

    Used from the next start on. Returns why nothing was built, if nothing needed to be. Raises NativeOpsError.
    """
    if not possible():
        return "this is Paddle's CPU build"
    folder = native.source_folder()
    if folder is None:
        raise NativeOpsError("the sources of the native ops are not installed")
    script = str(folder / "build_cuda.py")
    command = [sys.executable, script, "--output", str(_PACKAGE), *(["--force"] if force else [])]
    status = subprocess.run(command, stdout=sys.stderr).returncode
    if status == _NO_COMPILER:
        return "there is no CUDA compiler here"
    if status != 0:
        raise NativeOpsError("the native ops for a GPU could not be built; the reason is above")
    return ""


_NO_COMPILER = 3  # exit status of ext/build_cuda.py
