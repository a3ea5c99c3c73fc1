"""What messages call a source: short, on one line, without credentials and without anything a terminal would obey."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

STDIN_NAME = "standard input"


class Piped(bytes):
    """What came through standard input, which messages call by that name."""

    __slots__ = ()


class Named(bytes):
    """The bytes that a path or URL had when they were read; messages go on calling them by it.

    reference: the path or URL; empty for what never had one.
    """

    reference: str
    name: str

    def __new__(cls, data: bytes, reference: str, name: str = "") -> Named:
        made = super().__new__(cls, data)
        made.reference, made.name = reference, name or reference
        return made


def describe(source: object) -> str:
    """A short name of a source for a message: no long data, no credentials, one line."""
    if isinstance(source, Piped):
        return STDIN_NAME
    if isinstance(source, Named):
        return describe(source.name)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if not isinstance(source, (str, Path)):
        size = getattr(source, "shape", None) or getattr(source, "size", None)
        return f"<{type(source).__name__} {size}>" if size is not None else f"<{type(source).__name__}>"
    text = str(source)
    if text == "-":
        return STDIN_NAME
    if text[:5].lower() == "data:":
        short = f"{text[:32]}... ({len(text)} characters)" if len(text) > 48 else text.rstrip(":")
        return printable(short)
    text = printable(_redact(text) if is_url(text) else text)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"


def printable(text: str) -> str:
    """The text with "?" for what a terminal would obey or cannot show: control characters and surrogates."""
    return "".join(char if char.isprintable() else "?" for char in text)


def is_url(text: str) -> bool:
    """Whether the text is an http or https URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def _redact(url: str) -> str:
    """Without user, password, query and fragment: signed links carry their key in the query."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" + ("?..." if parts.query else "")
    except ValueError:  # not a URL after all, which is the message that this goes into
        scheme, _, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
