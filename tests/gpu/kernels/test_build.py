"""That the ops of a GPU compile for every card they are meant for, and what their sources may not name."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from ext import build_cuda
from tests.gpu.kernels.devices import Device


@pytest.mark.slow
def test_all_ops_compile_for_all_cards_and_load_without_one() -> None:
    try:
        build_cuda.find_nvcc()
    except build_cuda.CannotBuild as missing:
        pytest.skip(f"{missing}: the ops of a GPU are not compiled here, only emulated")
    target = build_cuda.Target(build_cuda.native.build_folder() / "cards")
    build_cuda.build(target, say=False)
    library = ctypes.CDLL(str(target.library))
    library.qvl_cuda_architectures.restype = ctypes.c_char_p
    assert library.qvl_cuda_architectures().decode().split() == ["sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]
    assert (library.qvl_cuda_abi(), library.qvl_cuda_emulated()) == (1, 0)
    assert missing_ops(library) == []


@pytest.mark.skipif("QVL_GPU_TESTS_OPS" in os.environ, reason="only some ops were asked for")
def test_every_op_of_the_headers_is_there(device: Device) -> None:
    assert missing_ops(device.library) == []


def missing_ops(library: ctypes.CDLL) -> list[str]:
    """Functions that the headers promise and the library does not have."""
    promised = []
    for header in sorted((build_cuda.HERE / "include" / "qvl" / "cuda").glob("*.h")):
        words = header.read_text(encoding="utf-8").replace("(", " ").split()
        promised += [word for word in words if word.startswith("qvl_cuda_") and word.isidentifier()]
    assert "qvl_cuda_rms_norm" in promised
    return [name for name in promised if not hasattr(library, name)]


@pytest.mark.parametrize("folder", ["cuda", "include"])
def test_kernels_know_no_framework(folder: str) -> None:
    named = [path for path in _files(build_cuda.HERE / folder) if "paddle" in path.read_text(encoding="utf-8").lower()]
    assert named == []


def test_these_tests_need_no_framework() -> None:
    """They are to run where there is torch and no Paddle."""
    here = Path(__file__).resolve().parent
    for path in _files(here):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            named = words[1].split(".")[0] if words[:1] in (["import"], ["from"]) and len(words) > 1 else ""
            assert named not in ("paddle", "qvl"), f"{path.name}: {line}"


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".cu", ".cuh", ".h", ".cc", ".py")]
