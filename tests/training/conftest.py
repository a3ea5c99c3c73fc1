"""Data for the tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import ANSWERS, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of noise, each with an answer; in `turned.json`, with the answer of the next."""
    folder = tmp_path_factory.mktemp("data")
    for file, first in (("data.json", 0), ("turned.json", 1)):
        write_data(folder, file, ANSWERS[first:] + ANSWERS[:first])
    return folder
