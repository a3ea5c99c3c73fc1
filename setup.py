"""What pyproject.toml cannot say: the native ops are built with the package, where there is a compiler and Paddle."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("qvl_ext_build", ROOT / "ext" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Hands over to ext/build.py. What it cannot build is left out, and said: qvl runs without it, slower."""

    editable_mode = False

    def _folder(self) -> Path:
        return ROOT / "src" / "qvl" if self.editable_mode or self.inplace else Path(self.build_lib).resolve() / "qvl"

    def run(self) -> None:
        if os.environ.get("QVL_BUILD_NATIVE", "1") == "0":
            return
        native = builder()
        try:
            native.build(self._folder())
        except native.CannotBuild as missing:
            print(f"native ops not built: {missing}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else [str(path) for path in self._folder().glob("_native.*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


setup(ext_modules=[Extension("qvl._native", sources=[])], cmdclass={"build_ext": BuildNative})
