"""Tokens on their way into a request: in no message, in no `repr`, and not followed to another host.

requests drops Authorization and Cookie by itself when a redirect leaves the host.
"""

from __future__ import annotations

from pathlib import Path

import requests
from requests.auth import AuthBase


class Token(AuthBase):
    """Sends a token in a header. form: what stands around it, such as "Bearer {}"."""

    def __init__(self, token: str, header: str = "Authorization", form: str = "Bearer {}") -> None:
        self._token, self._header, self._form = token, header, form

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers[self._header] = self._form.format(self._token)
        return request

    def __repr__(self) -> str:
        return "Token(...)"


def usable(text: str | None) -> str | None:
    """A token without what surrounds it in a file; None when nothing is left, or what cannot be sent in a header."""
    token = (text or "").strip()
    return token if token and token.isascii() and token.isprintable() else None


def from_file(path: Path) -> str | None:
    try:
        return usable(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
