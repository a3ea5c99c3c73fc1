"""What a hub may answer to a request for bytes: the file as a good server sends it, or any way to get it wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class Asked:
    """A request for a file's bytes, as the server saw it, and how many bytes it sent."""

    method: str
    path: str
    name: str
    headers: Mapping[str, str]
    sent: int = 0
    status: int = 0


class Answer(Protocol):
    """Sends the answer to a request for bytes in place of the server's own way."""

    def __call__(self, handler: Any, data: bytes, asked: Asked) -> None: ...


def send(handler: Any, data: bytes, asked: Asked, headers: Mapping[str, str] | None = None) -> None:
    """A file as a good server sends it."""
    first = _first(asked)
    total = len(data)
    if first >= total > 0:
        handler.plain(416, {"Content-Range": f"bytes */{total}"})
        return
    asked.status = 206 if first else 200
    part = {"Content-Range": f"bytes {first}-{total - 1}/{total}"} if first else {}
    handler.send_response(asked.status)
    for name, value in {**(headers or {}), **part, "Content-Length": str(total - first)}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "GET":
        write(handler, data[first:], asked)


def write(handler: Any, data: bytes, asked: Asked, pause: float = 0.0) -> None:
    for start in range(0, len(data), 16384):
        asked.sent += len(data[start : start + 16384])  # first, since whoever reads may be done before we get on
        handler.wfile.write(data[start : start + 16384])
        time.sleep(pause)


def cut(after: int) -> Answer:
    """Promise the rest of the file, send so many bytes of it and close the connection."""

    def answer(handler: Any, data: bytes, asked: Asked) -> None:
        rest = data[_first(asked) :]
        _head(handler, data, asked, len(rest))
        write(handler, rest[:after], asked)
        handler.close_connection = True

    return answer


def stall(after: int, seconds: float) -> Answer:
    """Send so many bytes, then nothing for a while, and give up."""

    def answer(handler: Any, data: bytes, asked: Asked) -> None:
        rest = data[_first(asked) :]
        _head(handler, data, asked, len(rest))
        write(handler, rest[:after], asked)
        time.sleep(seconds)
        handler.close_connection = True

    return answer


def hold(after: int, until: threading.Event) -> Answer:
    """Send so many bytes of the file, and the rest when `until` is set."""

    def answer(handler: Any, data: bytes, asked: Asked) -> None:
        rest = data[_first(asked) :]
        _head(handler, data, asked, len(rest))
        write(handler, rest[:after], asked)
        until.wait(120)
        write(handler, rest[after:], asked)

    return answer


def slow(pause: float) -> Answer:
    """The file, with a pause after every 16 KiB."""

    def answer(handler: Any, data: bytes, asked: Asked) -> None:
        rest = data[_first(asked) :]
        _head(handler, data, asked, len(rest))
        write(handler, rest, asked, pause)

    return answer


def refuse(code: int, headers: Mapping[str, str] | None = None) -> Answer:
    return lambda handler, _data, _asked: handler.plain(code, dict(headers or {}))


def whole(data: bytes | None = None, *, cut_at: int | None = None, framed: bool = True) -> Answer:
    """All of a file, or of something else, whatever range was asked for. framed: with its length."""

    def answer(handler: Any, own: bytes, asked: Asked) -> None:
        body = own if data is None else data
        handler.send_response(200)
        if framed:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        write(handler, body[:cut_at], asked)
        handler.close_connection = not framed or cut_at is not None

    return answer


def _head(handler: Any, data: bytes, asked: Asked, length: int) -> None:
    first = _first(asked)
    asked.status = 206 if first else 200
    handler.send_response(asked.status)
    if first:
        handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def _first(asked: Asked) -> int:
    return int(asked.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
