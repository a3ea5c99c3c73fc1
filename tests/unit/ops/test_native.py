"""The library of native ops: what is asked for is had or refused with the reason, and one pool serves every op."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qvl.ops import native
from tests.unit.ops.test_packing import needs_native

ROOT = Path(__file__).parents[3]
LIBRARY = next(iter((ROOT / "src" / "qvl").glob("_native.*.so")), None)


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)


@pytest.mark.skipif(LIBRARY is None, reason="the native ops are not built")
def test_a_library_that_was_built_loads() -> None:
    """Or the tests of every native body would be skipped, as they are where none was built."""
    module, reason = native.installed()
    assert module is not None, reason


def test_composed_leaves_the_library_alone() -> None:
    with native.using("composed") as module:
        assert module is None and native.library() is None
        assert native.why_not() == "QVL_OPS=composed"


def test_without_a_library_auto_goes_on_and_native_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = native._open(tmp_path / "_native.so", tmp_path / "_native.json")
    assert missing.module is None and "not built" in missing.reason
    monkeypatch.setattr(native, "_loaded", missing)
    with native.using("auto") as module:
        assert module is None
        assert native.why_not() == missing.reason
    with (
        pytest.raises(native.NativeOpsError, match="QVL_OPS=native, but there are no native ops: they were not built"),
        native.using("native"),
    ):
        pass


@needs_native
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"paddle": "2.6.2 cpu"}, "built for Paddle 2.6.2 cpu, this is "),
        ({"sources": "0" * 16}, "older than their sources"),
    ],
)
def test_a_library_made_for_something_else_is_not_loaded(changed: dict[str, str], said: str, tmp_path: Path) -> None:
    assert LIBRARY is not None
    shutil.copy(LIBRARY, tmp_path)
    stamp = json.loads((LIBRARY.parent / "_native.json").read_text())
    (tmp_path / "_native.json").write_text(json.dumps({**stamp, **changed}))
    found = native._open(tmp_path / LIBRARY.name, tmp_path / "_native.json")
    assert found.module is None and said in found.reason and "qvl doctor --build" in found.reason


@needs_native
def test_a_damaged_library_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    assert LIBRARY is not None
    (tmp_path / LIBRARY.name).write_bytes(LIBRARY.read_bytes()[:100])
    shutil.copy(LIBRARY.parent / "_native.json", tmp_path)
    found = native._open(tmp_path / LIBRARY.name, tmp_path / "_native.json")
    assert found.module is None and "cannot be loaded" in found.reason


@needs_native
def test_a_lower_level_can_be_asked_for_and_a_strange_one_is_refused() -> None:
    show = "from qvl.ops import native; print(native.library().level(), native.library().threads())"
    assert in_a_process(show, QVL_CPU_ISA="portable", QVL_THREADS="3").stdout.split() == ["portable", "3"]
    strange = in_a_process(show, QVL_CPU_ISA="mmx")
    assert "QVL_CPU_ISA: this CPU runs portable" in strange.stderr and "not mmx" in strange.stderr


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("count", "grain"), [(0, 1), (1, 1), (1000, 1), (1000, 7), (5, 100)])
def test_every_item_of_a_job_is_done_once(threads: int, count: int, grain: int) -> None:
    with native.using("native", threads=threads) as module:
        for _ in range(20):
            assert module.visits(count, grain) == [1] * count


@needs_native
def test_a_forked_child_has_threads_of_its_own() -> None:
    done = in_a_process(
        "import os\n"
        "from qvl.ops import native\n"
        "m = native.library(); m.set_threads(3); m.visits(100, 1)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if m.visits(100, 1) == [1] * 100 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert done.stdout.strip() == "0", done.stderr


@needs_native
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_function_compiled_for_a_level_can_stand_in_for_another() -> None:
    """A weak symbol of a file compiled for AVX-512 might be the copy that the linker keeps for every machine."""
    levels = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx")
    objects = [path for level in levels for path in (ROOT / "build").glob(f"native-*/cpu-*-{level}-*.o")]
    if not objects:
        pytest.skip("no object files were kept")
    for path in objects:
        listed = subprocess.run(["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        level = path.name.split("-")[2]
        for line in listed.stdout.splitlines():
            _, kind, name = line.split(" ", 2)
            assert kind not in "WVu" or f"qvl::{level}::" in name, f"{path.name}: {name}"


def test_a_compiler_may_have_a_launcher_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    build = runpy.run_path(str(ROOT / "ext" / "build.py"))
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'pass' --flag")
    command = build["find_compiler"]()
    assert command == [sys.executable, "-c", "pass", "--flag"]
    assert build["name_of"](command) == f"{Path(sys.executable).name} -c pass --flag"


def test_objects_lie_where_nobody_else_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build = runpy.run_path(str(ROOT / "ext" / "build.py"))
    monkeypatch.setitem(build["build_folder"].__globals__, "HERE", tmp_path / "qvl" / "_ext")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build["build_folder"]() == tmp_path / "cache" / "qvl" / "build"


def test_building_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(native.NativeOpsError, match="could not be built"):
        native.build()
    assert "CXX=no-such-compiler was not found" in capfd.readouterr().err
