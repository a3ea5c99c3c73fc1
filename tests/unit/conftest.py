"""Checkpoints of other quantisers, each form made once a module."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qvl.ops import cuda
from qvl.ops.cuda_body import Body
from tests.unit.cuda_support import emulated_library
from tests.unit.foreign_support import FORMS, Written, write_foreign


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The folder of a form, and that of its numbers in float32. Not to be written to."""
    made: dict[str, tuple[Path, Path]] = {}

    def write(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = write_foreign(tmp_path_factory.mktemp("foreign"), FORMS[name], tokenizer=True)
        return made[name]

    return write


@pytest.fixture
def foreign_copy(foreign: Written, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of a form that may be written to."""

    def make(name: str) -> Path:
        shutil.copytree(foreign(name)[0], tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def gpu() -> Iterator[Body]:
    """Ops on CPU tensors take the bodies of a GPU, emulated."""
    with cuda.emulating(emulated_library()) as body:
        yield body
