"""Lines typed in earlier conversations, for the arrow keys; kept where the platform keeps such things, if it can."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory

from qvl.cli.paths import local

_NAME = "chat-history"
_LARGEST = 1 << 20  # bytes; of a larger file the older half is left out


def history_file() -> Path | None:
    """`$QVL_HOME/chat-history`, else in the platform's folder for state; None without a home.

    Of a QVL_HOME that several people share, the file is whoever's came first.
    """
    if os.environ.get("QVL_HOME"):
        shared = local(os.environ["QVL_HOME"]) / _NAME
        if not os.path.lexists(shared) or os.access(shared, os.R_OK | os.W_OK):
            return shared
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "qvl" / _NAME
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "qvl" / _NAME
    return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "qvl" / _NAME


class KeptHistory(FileHistory):
    """A history in a file that nobody else may read; without the file it lasts as long as the process."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            if path.stat().st_size > _LARGEST:
                data = path.read_bytes()
                start = data.find(b"\n# ", len(data) // 2)  # where an entry begins
                path.write_bytes(data[start + 1 :] if start >= 0 else b"")

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeEncodeError):
            super().store_string(string)
