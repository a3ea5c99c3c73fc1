"""From a source (path, URL, data: URI, stdin, bytes) to a file or to bytes, with every failure told in one line.

Files on disk stay on disk, so that a decoder can read a long clip without a copy of it in memory.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit
from urllib.request import url2pathname
from weakref import WeakKeyDictionary

from qvl.errors import MediaError
from qvl.network import is_offline
from qvl.processing.naming import STDIN_NAME, printable
from qvl.processing.naming import Named as Named
from qvl.processing.naming import Piped as Piped
from qvl.processing.naming import describe as describe
from qvl.processing.naming import is_url as is_url

if TYPE_CHECKING:
    import requests

MIB = 1 << 20
PICTURE_BYTES = 256 * MIB
CLIP_BYTES = 1024 * MIB

# Seconds. The last one bounds the whole download: a server that sends a byte now and then never times out a read.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
DEADLINE = 300.0
MAX_REDIRECTS = 5
_CHUNK = 1 << 16

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_stdin: WeakKeyDictionary[BinaryIO, bytes] = WeakKeyDictionary()


@dataclass(frozen=True)
class Media:
    """An encoded picture or clip: `path` when it is a file on disk, otherwise its bytes in `data`.

    name: what messages call it; short, and without a password.
    """

    name: str
    path: Path | None = None
    data: bytes = b""

    def file(self) -> str | io.BytesIO:
        """What decoders open."""
        return str(self.path) if self.path else io.BytesIO(self.data)

    def head(self, count: int = 16) -> bytes:
        """The first bytes, from which the kind of file can be told."""
        if self.path is None:
            return self.data[:count]
        try:
            with self.path.open("rb") as file:
                return file.read(count)
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read ({reason(error)})") from None


def open_source(source: str | Path | bytes, *, max_bytes: int = CLIP_BYTES, stdin: BinaryIO | None = None) -> Media:
    """Find a source and, unless it is a file on disk, read it.

    source: a path (`~` is expanded), `file://`, `http(s)://` or `data:` text, `-` for stdin, or the bytes themselves.
    max_bytes: limit for what comes through a wire or a pipe; files on disk are not limited.
    stdin: stands in for the process's own; whichever it is, it is read once and remembered.
    Raises MediaError: missing, a directory, empty, not to be had, too large, too slow.
    """
    name = describe(source)
    if isinstance(source, bytes):
        media = Media(name, data=source)
    elif str(source) == "-":
        media = Media(name, data=_read_stdin(stdin, max_bytes))
    elif isinstance(source, str) and source[:5].lower() == "data:":
        media = Media(name, data=_decode_data_uri(source, name))
    elif isinstance(source, str) and is_url(source):
        media = Media(name, data=_download(source, name, max_bytes))
    else:
        media = _open_file(local_path(source), name, max_bytes)
    if media.path is None and not media.data:
        raise MediaError(f"{name}: is empty")
    return media


def read_source(source: str | Path | bytes, *, max_bytes: int = PICTURE_BYTES, stdin: BinaryIO | None = None) -> bytes:
    """The bytes of a source, those of files on disk too. Arguments and errors as `open_source`."""
    media = open_source(source, max_bytes=max_bytes, stdin=stdin)
    if media.path is None:
        return media.data
    try:
        return media.path.read_bytes()
    except OSError as error:
        raise MediaError(f"{media.name}: cannot be read ({reason(error)})") from None


def local_path(source: str | Path) -> Path:
    """The path a source names: `~` expanded, `file://` resolved. Raises MediaError for any other scheme."""
    text = str(source)
    scheme = _SCHEME.match(text) if isinstance(source, str) else None
    if scheme is None:
        return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown ~user
    if scheme[1].lower() != "file":
        raise MediaError(f"{describe(source)}: {scheme[1]}:// is not supported; use a path, file, http, https or data:")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise MediaError(f"{describe(source)}: is not a valid URL") from None
    if parts.netloc not in ("", "localhost"):
        raise MediaError(f"{describe(source)}: names the host {parts.netloc!r}; a local file is file:///path")
    literal = Path(text[len("file://") :])  # written by hand, such a path is often not percent-encoded
    return literal if not parts.netloc and exists(literal) else Path(url2pathname(parts.path))  # decodes it


def exists(path: Path) -> bool:
    """Path.exists without its exceptions."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False


def _open_file(path: Path, name: str, max_bytes: int) -> Media:
    try:
        if path.is_dir():
            raise MediaError(f"{name}: is a directory")
        size = path.stat().st_size
        if path.is_file():
            if size == 0:
                raise MediaError(f"{name}: is empty")
            return Media(name, path=path)
        with path.open("rb") as pipe:  # a named pipe or <(command): readable once, and not seekable
            return Media(name, data=_read_limited(pipe, name, max_bytes))
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{name}: cannot be read ({reason(error)})") from None


def reason(error: Exception) -> str:
    """The cause without the path that Python repeats in it."""
    return printable((error.strerror or str(error)) if isinstance(error, OSError) else str(error))


def _read_limited(stream: BinaryIO, name: str, max_bytes: int) -> bytes:
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    return data


def _read_stdin(stream: BinaryIO | None, max_bytes: int) -> bytes:
    if stream is None and sys.stdin is None:  # closed
        raise MediaError(f"{STDIN_NAME}: nothing is piped in")
    stream = stream or sys.stdin.buffer
    if stream not in _stdin:
        if stream.isatty():
            raise MediaError(f"{STDIN_NAME}: nothing is piped in; '-' reads a picture or clip from a pipe")
        _stdin[stream] = _read_limited(stream, STDIN_NAME, max_bytes)
    return _stdin[stream]


def _too_large(name: str, max_bytes: int) -> MediaError:
    size = f"{max_bytes // MIB} MiB" if max_bytes >= MIB else f"{max_bytes} bytes"
    return MediaError(f"{name}: is larger than the limit of {size}")


def _decode_data_uri(uri: str, name: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise MediaError(f"{name}: bad data URI, it has no comma before the data")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    packed = re.sub(r"\s+", "", unquote(body)).rstrip("=")
    try:  # both alphabets occur in the wild, and so does missing padding
        return base64.b64decode(packed.translate(_URLSAFE) + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(f"{name}: bad data URI, it is not base64") from None


_URLSAFE = str.maketrans("-_", "+/")


def _download(url: str, name: str, max_bytes: int) -> bytes:
    """Download in a thread that can be left behind: neither name look-up nor a trickle of headers has a time-out."""
    if is_offline():
        raise MediaError(f"{name}: QVL_OFFLINE is set, so nothing is fetched from the network")
    job = _Download(url, name, max_bytes)
    job.start()
    job.join(DEADLINE)
    if job.is_alive():
        job.abandoned = True
        raise MediaError(f"{name}: download not finished after {DEADLINE:g} s")
    if job.error is not None:
        raise job.error
    return bytes(job.body)


class _Download(threading.Thread):
    def __init__(self, url: str, name: str, max_bytes: int) -> None:
        super().__init__(name="qvl-download", daemon=True)
        self.url, self.media, self.max_bytes = url, name, max_bytes
        self.body = bytearray()
        self.error: Exception | None = None
        self.abandoned = False
        self.ends = time.monotonic() + DEADLINE

    def run(self) -> None:
        try:
            self._get()
        except Exception as error:
            self.error = error if isinstance(error, MediaError) else MediaError(f"{self.media}: {_http_reason(error)}")

    def _get(self) -> None:
        import requests

        from qvl import __version__

        headers = {"User-Agent": f"qvl/{__version__}", "Accept-Encoding": "identity"}
        url, options = self.url, {"stream": True, "allow_redirects": False, "timeout": (CONNECT_TIMEOUT, READ_TIMEOUT)}
        with requests.Session() as session:
            for _ in range(MAX_REDIRECTS + 1):
                with session.get(url, headers=headers, **options) as response:  # type: ignore[arg-type]
                    if not response.is_redirect:
                        self._receive(response)
                        return
                    url = urljoin(url, response.headers["location"])
                if not is_url(url):
                    raise MediaError(f"{self.media}: redirects to {describe(url)}, which is not http or https")
        raise MediaError(f"{self.media}: more than {MAX_REDIRECTS} redirects")

    def _receive(self, response: requests.Response) -> None:
        if response.status_code != 200:
            raise MediaError(f"{self.media}: the server answered {_status(response)}")
        announced = response.headers.get("content-length", "")
        expected = int(announced) if announced.isdigit() else None
        if expected is not None and expected > self.max_bytes:
            raise _too_large(self.media, self.max_bytes)
        for chunk in response.iter_content(_CHUNK):
            self.body += chunk
            if len(self.body) > self.max_bytes:
                raise _too_large(self.media, self.max_bytes)
            if self.abandoned:
                return
        if expected is not None and len(self.body) < expected and "content-encoding" not in response.headers:
            raise MediaError(f"{self.media}: the connection ended after {len(self.body)} of {expected} bytes")


def _status(response: requests.Response) -> str:
    return printable(f"{response.status_code} {response.reason or ''}"[:100].rstrip())


def _http_reason(error: Exception) -> str:
    """What requests means, without its nested text, which repeats the URL with its password."""
    import requests

    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"no answer within {READ_TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate was refused, or it does not speak TLS"
    if "NameResolution" in text or "getaddrinfo" in text or "Name or service" in text:
        return "the host name could not be resolved"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection ended before the file was complete"
    if isinstance(error, requests.ConnectionError):
        return "connection refused" if "refused" in text else "the connection failed"
    if isinstance(error, ValueError):  # requests' InvalidURL and MissingSchema among them
        return "is not a valid URL"
    return f"download failed ({type(error).__name__})"
