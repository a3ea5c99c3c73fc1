"""Fixtures for every test: tiny checkpoints made on the spot, once a run, and the golden references."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from tests.golden import load_case
from tests.golden.cases import VARIANTS

CheckpointOf = Callable[[str], Path]
Golden = Callable[[str], dict[str, npt.NDArray[Any]]]


@pytest.fixture(scope="session")
def checkpoint_variant(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """`checkpoint_variant(name)` is the folder of one of the VARIANTS of the golden cases. Not to be written to."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the run, which its workers share
    shared = base / "checkpoints"
    shared.mkdir(exist_ok=True)

    def checkpoint(name: str) -> Path:
        folder = shared / name
        if not folder.exists():
            making = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=shared))
            VARIANTS[name].write(making)
            try:
                making.rename(folder)
            except OSError:  # another worker was first, with the same content
                shutil.rmtree(making)
        return folder

    return checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(checkpoint_variant: CheckpointOf) -> Path:
    """A tiny model in the form the published ones have: tied head, float32, one file."""
    return checkpoint_variant("tiny")


@pytest.fixture(scope="session")
def golden() -> Golden:
    """`golden(case)` is what the reference model made of a case: see tests/golden/README.md for the arrays."""
    return load_case
