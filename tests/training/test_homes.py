"""PaddleNLP and VisualDL where the home folder cannot be written: they make folders there while they are imported."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qvl.errors import QvlError
from qvl.training import homes

# In the place of both: says where it would have made its folders, and whether that can be written.
FAKE = """
import os
place = os.environ.get({variable!r})
with open(os.path.join(place or os.path.expanduser("~"), "trace"), "w") as file:
    file.write("x")
"""


@pytest.fixture(params=["paddlenlp", "visualdl"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    (tmp_path / "packages").mkdir()
    variable = {"paddlenlp": "PPNLP_HOME", "visualdl": "HOME"}[name]
    (tmp_path / "packages" / f"{name}.py").write_text(FAKE.format(variable=variable))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setitem(sys.modules, name, sys)  # so that what is imported here goes again
    del sys.modules[name]
    monkeypatch.delenv("PPNLP_HOME", raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return name


def import_it(library: str) -> str:
    """Where the library found its home."""
    importing: dict[str, Callable[[], object]] = {
        "paddlenlp": homes.import_paddlenlp,
        "visualdl": homes.import_visualdl,
    }
    before = dict(os.environ)
    importing[library]()
    assert dict(os.environ) == before
    return str(sys.modules[library].place)


def test_a_home_that_can_be_written_is_used(library: str, tmp_path: Path) -> None:
    assert import_it(library) == {"paddlenlp": "None", "visualdl": str(tmp_path / "home")}[library]


def test_without_a_home_there_is_a_temporary_one_that_is_gone_afterwards(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))  # which nobody can make, root neither
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "file" / "home"))
    place = Path(import_it(library))
    assert place.is_absolute() and not place.exists()


def test_a_home_over_its_quota_is_left_alone(library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    if library == "visualdl":  # whose folders still fit
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    else:
        monkeypatch.setattr(Path, "mkdir", full)
    place = Path(import_it(library))
    assert place.is_absolute() and tmp_path / "home" not in (place, *place.parents) and not place.exists()


@pytest.mark.parametrize("library", ["paddlenlp"], indirect=True)  # VisualDL knows the home only
def test_a_place_of_the_users_own_is_used(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "own"))
    assert import_it(library) == str(tmp_path / "own") and (tmp_path / "own" / "models").is_dir()


def test_no_folder_anywhere_is_said(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "file" / "home"))

    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(QvlError, match=r"neither the home folder nor a temporary one can be written .*set TMPDIR"):
        import_it(library)
