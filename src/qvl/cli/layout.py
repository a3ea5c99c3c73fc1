"""--layout, of commands that read weights without the keys of a profile: how matrices lie where files do not say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from qvl.errors import UnknownLayoutError, UsageError

Layout = Literal["hf", "paddle"]


def layout_of(text: str | None) -> Layout | None:
    """What was given for --layout. Raises UsageError."""
    if text not in (None, "hf", "paddle"):
        raise UsageError(f"--layout {text}: hf or paddle was expected")
    return "hf" if text == "hf" else "paddle" if text == "paddle" else None


@contextmanager
def naming_layout() -> Iterator[None]:
    """Where the layout is not known, name the option of these commands: the others take it by --set."""
    try:
        yield
    except UnknownLayoutError as error:
        raise UnknownLayoutError(error.what, "--layout hf or --layout paddle") from None
