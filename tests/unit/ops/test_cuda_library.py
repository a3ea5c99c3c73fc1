"""The library of kernels for a GPU: what is asked for is had or refused with the reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import pytest

from ext import build_cuda
from qvl.ops import cuda, native, status
from qvl.ops.cuda import Opened
from qvl.ops.cuda_body import Body
from qvl.ops.native import NativeOpsError

MODULE = SimpleNamespace(CudaLibrary=lambda path: SimpleNamespace(emulated=False, architectures=path, **SIZES))
SIZES = {"MOST_QUERIES": 16, "MOST_ROWS": 64}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU build of Paddle with a GPU, whose facts may be changed."""
    facts: dict[str, Any] = {"count": 1, "capability": (9, 0)}
    monkeypatch.setattr(cuda, "_possible", True)
    monkeypatch.setattr(cuda, "_opened", None)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: facts["count"])
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: facts["capability"])
    return facts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What build_cuda.py leaves."""
    path = tmp_path / cuda.NAME
    path.write_bytes(b"")
    path.with_suffix(".json").write_text(json.dumps({"sources": build_cuda.source_hash()}))
    assert build_cuda.NAME == cuda.NAME
    return path


def test_one_that_fits_is_opened(card: dict[str, Any], file: Path) -> None:
    opened = cuda._open(MODULE, file)
    assert opened.reason == "" and opened.body is not None and card["count"]
    assert (opened.body.architectures, opened.body.most_rows) == (str(file), 64)


def test_why_there_is_none(card: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        opened = cuda._open(MODULE, file)
        assert opened.body is None
        return opened.reason

    card["capability"] = (7, 5)
    assert reason() == "they need compute capability 8.0, this GPU has 7.5"
    card["count"] = 0
    assert reason() == "there is no GPU here"
    file.with_suffix(".json").write_text('{"sources": "others"}')
    assert reason().startswith("they are older than their sources")
    file.with_suffix(".json").unlink()
    assert reason().startswith("they are older than their sources")
    file.unlink()
    assert reason().startswith("they were not built; `qvl doctor --build`")
    monkeypatch.setattr(cuda, "_possible", False)
    assert reason() == "this is Paddle's CPU build"


def test_one_of_another_version_is_a_reason(card: dict[str, Any], file: Path) -> None:
    def refused(_: str) -> Any:
        raise RuntimeError("it has interface 0,\n1 is needed")

    opened = cuda._open(SimpleNamespace(CudaLibrary=refused), file)
    assert opened == Opened(None, "it has interface 0, 1 is needed; `qvl doctor --build` makes them anew")
    assert card["count"]


def test_native_raises_with_the_reason_and_auto_goes_on(card: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        set_level=None, level=lambda: "", set_threads=lambda _: None, threads=lambda: 1, CudaLibrary=None
    )
    monkeypatch.setattr(native, "_loaded", native.Loaded(module, ""))
    monkeypatch.setattr(cuda, "_opened", Opened(None, "so it is"))
    module.set_level = lambda _: None
    with native.using("auto"):
        assert cuda.library() is None and cuda.why_not() == "so it is" and card["count"]
    with native.using("native"), pytest.raises(NativeOpsError, match="no native ops for a GPU: so it is"):
        cuda.library()
    with native.using("composed"):
        assert cuda.library() is None and cuda.why_not() == "QVL_OPS=composed"


def test_an_emulated_library_is_for_tests_alone(gpu: Body) -> None:
    assert cuda.library() is gpu and cuda.why_not() is None and status.find_gpu_build() != ""
    found = status.status("flash", "auto", "gpu:0")
    assert (found.built, found.reason, found.gpu_reason, found.instructions) == (True, "", "", ("emulated",))
    bodies = {op.name: op.body for op in found.ops}
    assert bodies == {
        "rms_norm": "native",
        "apply_rotary": "composed",
        "varlen_attention": "flash",
        "swiglu": "native",
        "quick_gelu": "native",
        "linear": "native",
        "mlp": "composed",
    }


@pytest.mark.parametrize(("code", "words"), [(0, ""), (build_cuda.CANNOT, "there is no CUDA compiler here"), (1, None)])
def test_building(card: dict[str, Any], code: int, words: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    if words is None:
        with pytest.raises(NativeOpsError, match="could not be built; the reason is above"):
            cuda.build()
    else:
        assert cuda.build() == words
    assert Path(asked[0][1]).name == "build_cuda.py" and card["count"]
    monkeypatch.setattr(cuda, "_possible", False)
    assert cuda.build() == "this is Paddle's CPU build" and len(asked) == 1
