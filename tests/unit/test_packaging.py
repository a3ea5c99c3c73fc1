"""What a normal installation brings: an editable one, as the tests run in, has the whole tree whatever is listed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_every_package_is_listed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {".".join(file.parent.relative_to(ROOT / "src").parts) for file in ROOT.glob("src/qvl/**/__init__.py")}
    assert sorted(listed) == sorted(there | {"qvl._ext", "qvl._profiles"})
