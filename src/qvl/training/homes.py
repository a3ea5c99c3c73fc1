"""Importing PaddleNLP and VisualDL where the home folder may not be written or is full.

Both make folders of their own there while they are imported, and fail where that fails. Nothing that a run needs of
them is ever in those folders, so that a temporary one does as well, for as long as the import takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from qvl.errors import QvlError

_OF_PADDLENLP = ("models", "datasets", "packages")
_OF_VISUALDL = ("conf", "fastdeployserver", "x2paddle")


def import_paddlenlp() -> None:
    """Import PaddleNLP, whether or not its folders can be made. Raises QvlError when no temporary one can be either."""
    if "paddlenlp" in sys.modules:
        return
    own = os.environ.get("PPNLP_HOME")
    home = _in_home(".paddlenlp") if own is None else Path(own)
    with nullcontext() if home is not None and _has_folders(home, _OF_PADDLENLP) else _elsewhere("PPNLP_HOME"):
        import paddlenlp  # noqa: F401


def import_visualdl() -> Any:
    """VisualDL, whether or not its folders can be made. Raises QvlError when no temporary one can be either."""
    if "visualdl" not in sys.modules:
        home = _in_home(".visualdl")
        usable = home is not None and _has_folders(home, _OF_VISUALDL) and _takes_config(home / _OF_VISUALDL[0])
        # It knows the home only; the second name is Windows'.
        with nullcontext() if usable else _elsewhere("HOME", "USERPROFILE"):
            import visualdl  # noqa: F401
    return sys.modules["visualdl"]


def _in_home(name: str) -> Path | None:
    """A folder of the user's home; None without a home, where these libraries would make one that is called "~"."""
    try:
        return Path("~").expanduser() / name
    except RuntimeError:
        return None


def _has_folders(home: Path, names: Sequence[str]) -> bool:
    """Make them as the library would, and say whether they are there."""
    try:
        for name in names:
            (home / name).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _takes_config(folder: Path) -> bool:
    """Whether VisualDL's settings are in its folder or can be written there: on a full disk the folder alone fits."""
    config = folder / "config.json"
    try:
        if config.is_file() and config.stat().st_size:
            return True
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"{}")
    except OSError:
        return False
    return not config.exists() or os.access(config, os.W_OK)


@contextmanager
def _elsewhere(*variables: str) -> Iterator[None]:
    """Let these variables name a folder that is gone when the block ends. They are then what they were."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        made = tempfile.TemporaryDirectory(prefix="qvl-", ignore_cleanup_errors=True)
    except OSError as error:
        raise QvlError(
            f"neither the home folder nor a temporary one can be written ({error.strerror or error}); "
            "set TMPDIR to a folder that can"
        ) from None
    with made as folder:
        os.environ.update(dict.fromkeys(variables, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
