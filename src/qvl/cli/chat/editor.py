"""A text in the editor of whoever is at the terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from qvl.errors import UsageError


def command() -> list[str]:
    """$VISUAL or $EDITOR as a command; empty without either."""
    text = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        return shlex.split(text, posix=os.name != "nt")
    except ValueError:
        raise UsageError(f"EDITOR is no command: {text!r}") from None


def edited(text: str) -> str | None:
    """What somebody makes of a text; None when the editor was left with an error. `command` has to give one.

    Raises UsageError when it cannot be run.
    """
    editor = command()
    number, name = tempfile.mkstemp(prefix="qvl-", suffix=".md")
    path = Path(name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        done = subprocess.run([*editor, name], check=False)
        return path.read_text(encoding="utf-8").rstrip("\n") if done.returncode == 0 else None
    except OSError as error:
        raise UsageError(f"{editor[0]}: cannot be run ({error.strerror or error}); see EDITOR") from None
    except UnicodeDecodeError:
        raise UsageError("the edited text is not UTF-8") from None
    finally:
        path.unlink(missing_ok=True)
