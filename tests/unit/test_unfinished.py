"""The hidden folder in which a model is made: gone in the end, and what a killed process left goes the next time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qvl.model.unfinished import remove_left_over, unfinished

KILLED = """
import os, sys
from pathlib import Path
from qvl.model.unfinished import unfinished
with unfinished(Path(sys.argv[1])) as made:
    (made / "weights").write_bytes(b"x" * 1000)
    os._exit(9)
"""


def test_it_takes_its_place_or_is_gone(tmp_path: Path) -> None:
    with unfinished(tmp_path / "out") as made:
        (made / "file").touch()
        assert made.parent == tmp_path and made.name.startswith(".out.")
        made.rename(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.b+c"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    others = [tmp_path / ".a.b+c.mine", tmp_path / left.name.replace("a.b+c", "other")]
    for other in others:
        other.mkdir()
    with unfinished(target) as made:
        assert sorted(tmp_path.iterdir()) == sorted([*others, made]), "its own is still being made"
        remove_left_over(target)
        assert made.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted(others)
