"""One request at a time over requests: time limits, what an answer means, and nothing secret in what is said of it.

Messages name the host and never a query, which in the address of a content server is a key; causes are not chained,
so that a traceback does not show them either.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth
from requests.structures import CaseInsensitiveDict

from qvl import __version__
from qvl.errors import UsageError
from qvl.hub.remote import SourceError

_MOST_JSON = 32 * 1024 * 1024
_LONGEST_WAIT = 600.0  # a source that asks for more than this is as good as away
_LONGEST_PAUSE = 30.0
_PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 522, 524)
_WORTH_TELLING = 5.0
_CONNECT_SECONDS = 15.0

Headers = Mapping[str, str]
_T = TypeVar("_T")


class Stopped(Exception):  # noqa: N818 -- not an error: another file has failed, or Ctrl-C was pressed
    """The download was called off."""


@dataclass(frozen=True)
class Patience:
    """stall: seconds without a byte after which a connection is dead. tries: attempts that bring nothing, in a row."""

    stall: float = 30.0
    tries: int = 6

    @classmethod
    def from_environment(cls) -> Patience:
        """`QVL_DOWNLOAD_TIMEOUT` and `QVL_DOWNLOAD_TRIES` over the defaults. Raises UsageError."""
        stall = _number("QVL_DOWNLOAD_TIMEOUT", cls.stall)
        tries = _number("QVL_DOWNLOAD_TRIES", cls.tries)
        return cls(stall, int(tries))

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: short after a mere cut, then doubling."""
        return 0.1 if failures == 0 else min(_LONGEST_PAUSE, 0.5 * 2.0**failures)


class Web:
    """A session with one source. Not for several threads."""

    def __init__(
        self,
        auth: AuthBase | None,
        patience: Patience,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._session = requests.Session()
        # Else requests would look into ~/.netrc and let what it finds there take the token's place.
        self._session.auth = auth or _as_addressed
        self._session.headers.update({"User-Agent": f"qvl/{__version__}", "Accept-Encoding": "identity"})
        self._stop = stop or threading.Event()
        self._tell = tell
        self.patience = patience

    def close(self) -> None:
        self._session.close()

    def json(self, url: str) -> Any:
        """What a JSON interface answers, asked again while the trouble may pass. Raises SourceError."""
        return self._persist(lambda: self._json_once(url))

    def head(self, url: str) -> Headers:
        """The headers of a file, where redirects lead to in the end. Raises SourceError."""

        def once() -> Headers:
            with self.open(url, method="HEAD") as answer:
                first = (answer.history or [answer])[0]
                return CaseInsensitiveDict({**answer.headers, **_linked(first.headers)})

        return self._persist(once)

    def start_of(self, url: str, most: int) -> bytes:
        """The first bytes of a file, at most so many. Raises SourceError."""

        def once() -> bytes:
            with self.open(url) as answer:
                data = b""
                while len(data) < most and (block := read(answer, most - len(data))):
                    data += block
                return data

        return self._persist(once)

    def open(self, url: str, headers: Headers | None = None, method: str = "GET") -> requests.Response:
        """Send one request and wait for the head of the answer; the caller closes it. Raises SourceError."""
        limits = (min(_CONNECT_SECONDS, self.patience.stall), self.patience.stall)
        try:
            answer = self._session.request(
                method, url, headers=dict(headers or {}), stream=True, timeout=limits, allow_redirects=True
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError, UnicodeError) as error:
            raise _unanswered(error, url) from None
        if answer.status_code in (200, 206):
            return answer
        failure = _refusal(answer, answer.url or url)
        answer.close()
        raise failure

    def rest(self, seconds: float) -> None:
        """Wait. Raises Stopped as soon as the download is called off."""
        if self._stop.wait(seconds):
            raise Stopped

    def recover(self, failure: SourceError, failures: int) -> None:
        """Wait before the next attempt, as long as the source asks, or longer with each of `failures` in a row.

        Raises the failure when it will not pass or was the last that patience bears, and Stopped.
        """
        if not failure.passing or failures >= self.patience.tries:
            raise failure
        seconds = failure.wait if failure.wait is not None else self.patience.pause(failures)
        if seconds >= _WORTH_TELLING and self._tell is not None:
            self._tell(f"{failure}; trying again in {seconds:.0f} s")
        self.rest(seconds)

    def _json_once(self, url: str) -> Any:
        with self.open(url) as answer:
            data = b""
            while block := read(answer, 1 << 20):
                data += block
                if len(data) > _MOST_JSON:
                    raise SourceError(f"{host(url)} sent a list without end")
            try:
                return json.loads(data)
            except ValueError:
                raise SourceError(f"{host(url)} did not answer with JSON; is it what it is taken for?") from None

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        failures = 0
        while True:
            try:
                return attempt()
            except SourceError as failure:
                failures += 1
                self.recover(failure, failures)


def read(answer: requests.Response, most: int) -> bytes:
    """The bytes that have arrived, at most so many; b"" at the end. Raises SourceError when the connection was cut.

    `iter_content` would wait for a whole block, and lose what it has of it when the connection breaks.
    """
    try:
        return bytes(answer.raw.read1(most, decode_content=False))
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _unanswered(error, answer.url or "") from None


def host(url: str) -> str:
    """The host of an address, for messages: no user, no password, no query."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or url[:60]) + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the address"


def endpoint(variables: tuple[str, ...], default: str) -> str:
    """The address of a source: the first variable that is set, else its usual one. Raises UsageError."""
    for name in variables:
        text = os.environ.get(name, "").strip().rstrip("/")
        if text:
            parts = urlsplit(text)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UsageError(f"{name} is not the address of a server, such as {default}")
            return text
    return default


def _as_addressed(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Nobody in particular, or who stands in the address, as that of a mirror of one's own may have it."""
    user, password = requests.utils.get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user else request


def _linked(headers: Headers) -> dict[str, str]:
    """What the first answer says of the file that it redirects to."""
    return {name: value for name, value in headers.items() if name.lower().startswith("x-")}


def _refusal(answer: requests.Response, url: str) -> SourceError:
    """What an answer that is no file means."""
    code, server = answer.status_code, host(url)
    if code in _PASSING or (code == 403 and answer.history):  # 403 at a content server: its address has run out
        wait = _retry_after(answer.headers.get("Retry-After"))
        if wait is not None and wait > _LONGEST_WAIT:
            return SourceError(f"{server} asks to be left alone for {wait / 60:.0f} minutes (HTTP {code})")
        busy = "too many requests" if code == 429 else answer.reason or "busy"
        return SourceError(f"{server} answered {code} ({busy})", passing=True, wait=wait)
    if code == 401:
        return SourceError(f"{server} answered 401: there is no such model, or its token is missing or wrong")
    if code == 403:
        return SourceError(f"{server} answered 403: the model needs a token of somebody who may have it", status=code)
    if code == 404:
        return SourceError(f"{server} does not have it (404)", status=code)
    if code == 416:
        return SourceError(f"{server} answered 416 to a part of a file", passing=True)
    return SourceError(f"{server} answered {code} ({answer.reason})")


def _unanswered(error: Exception, url: str) -> SourceError:
    """What went wrong on the way, in words of our own: those of the libraries hold whole addresses."""
    server = host(url)
    text = f"{type(error).__name__} {error}"
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema)):
        return SourceError(f"{server} is not an address")
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return SourceError(f"{server} redirects in a circle")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return SourceError(f"{server} has no certificate that this machine trusts")
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "timed out" in text:
        return SourceError(f"{server} did not answer in time", passing=True)
    if "NameResolution" in text or "getaddrinfo" in text or "Name or service not known" in text:
        return SourceError(f"{server} is not known here; is there a network?", passing=True)
    if "ProxyError" in text:
        return SourceError(f"the proxy on the way to {server} does not let it through", passing=True)
    if "refused" in text:
        return SourceError(f"{server} takes no connections", passing=True)
    return SourceError(f"the connection to {server} was cut", passing=True)


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100000:
        raise UsageError(f"{name} must be a number above 0, not {text[:40]!a}")
    return value if name.endswith("TIMEOUT") else max(1.0, value)


def now() -> float:
    """Seconds since 1970."""
    return time.time()
