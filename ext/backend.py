"""The build backend: setuptools, and Paddle beside it where the native ops can be built.

Whoever has no compiler, or sets QVL_BUILD_NATIVE=0, does not download Paddle for the sake of the build.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403 - a backend is the names of its hooks

Settings = dict[str, Any] | None
_PADDLE = "paddlepaddle>=3.3,<3.4"


def _paddle_for_build() -> list[str]:
    asked = os.environ.get("CXX", "").split()
    compiler = any(shutil.which(name) for name in (asked[:1] or ["g++", "clang++", "c++"]))
    wanted = os.environ.get("QVL_BUILD_NATIVE", "1") != "0"
    # Our own folder paddle/, beside this file, looks like a package without a file of its own.
    found = importlib.util.find_spec("paddle")
    return [_PADDLE] if wanted and compiler and (found is None or found.origin is None) else []


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_paddle_for_build()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_paddle_for_build()]
