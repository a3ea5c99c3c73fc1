"""A server on this machine that speaks as the hubs do, and misbehaves on demand. Every request is on record.

Hugging Face: the model interface with blobs, `resolve` with its headers, large files redirected to another host.
ModelScope: the list with sha256 and the file interface. BOS: plain files. AI Studio: Gitea's interface with pointers.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.answers import Answer, Asked, send

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 4096  # from this size on a file is in LFS
KEY = "X-Signature=do-not-show"  # what a content server's addresses have in their query


@dataclass
class Hub:
    """What the server has, and what it is to do wrong.

    misbehave: given a request for bytes, what to answer in place of the file, or None. token: without it everything
    is 401. status: given a path of an interface, (code, headers) to answer in place of the list.
    """

    files: dict[str, bytes]
    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    commit: str = COMMIT
    token: str | None = None
    states_sizes: bool = True
    states_digests: bool = True
    misbehave: Callable[[Asked], Answer | None] = lambda _: None
    status: Callable[[str], tuple[int, dict[str, str]] | None] = lambda _: None
    asked: list[Asked] = field(default_factory=list)
    seen: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)

    def sent(self, name: str | None = None) -> int:
        """Bytes of files that went out."""
        return sum(entry.sent for entry in self.asked if entry.method == "GET" and name in (None, entry.name))

    def names(self) -> set[str]:
        """Files whose bytes were asked for."""
        return {entry.name for entry in self.asked if entry.method == "GET"}

    def __enter__(self) -> Hub:
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def content_url(self) -> str:
        """The same machine under another host's name, as a content server has."""
        return f"http://localhost:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """What leads every source here."""
        return {
            "HF_ENDPOINT": self.url,
            "MODELSCOPE_ENDPOINT": f"{self.url}/ms",
            "PPNLP_ENDPOINT": f"{self.url}/bos",
            "AISTUDIO_ENDPOINT": f"{self.url}/ai",
        }


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self._serve()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        pass

    def plain(self, code: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def json(self, data: Any) -> None:
        self.plain(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def bytes(self, name: str, headers: Mapping[str, str] | None = None) -> None:
        """A file, or the part of it that was asked for, unless something else is to happen."""
        asked = Asked(self.command, self.path, name, dict(self.headers))
        self.hub.asked.append(asked)
        data = self.hub.files[name]
        if self.command == "GET" and (wrong := self.hub.misbehave(asked)) is not None:
            wrong(self, data, asked)
            return
        send(self, data, asked, headers)

    def _may_ask(self) -> bool:
        token = self.hub.token
        return token is None or token in f"{self.headers['Authorization']}{self.headers['Cookie']}"

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: value[0] for key, value in parse_qs(parts.query).items()}
        self.hub.seen.append((self.command, self.path, dict(self.headers)))
        if (answer := self.hub.status(path)) is not None:
            self.plain(*answer)
        elif path.startswith("/cdn/"):
            self.bytes(path.removeprefix("/cdn/"))
        elif not self._may_ask():
            self.plain(401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/ms/"):
            self._modelscope(path.removeprefix("/ms"), query)
        elif path.startswith("/bos/"):
            self._bos(path.removeprefix("/bos"))
        elif path.startswith("/ai/"):
            self._aistudio(path.removeprefix("/ai"), query)
        else:
            self._huggingface(path)

    def _huggingface(self, path: str) -> None:
        hub = self.hub
        if path in (f"/api/models/{hub.model}/revision/main", f"/api/models/{hub.model}/revision/{hub.commit}"):
            self.json({"id": hub.model, "sha": hub.commit, "siblings": [_sibling(hub, name) for name in hub.files]})
            return
        # As on the hub, the branch can be named too; qvl must not, since it may move.
        place = f"/{hub.model}/resolve/{'main' if '/resolve/main/' in path else hub.commit}/"
        name = path.removeprefix(place)
        if not path.startswith(place) or name not in hub.files:
            self.plain(404, {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.files[name]
        etag = _sha256(data) if len(data) >= LARGE else _git_sha1(data)
        headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if len(data) < LARGE:
            self.bytes(name, headers)
            return
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
        self.plain(302, {**headers, **linked, "Location": f"{hub.content_url}/cdn/{name}?{KEY}"})

    def _modelscope(self, path: str, query: Mapping[str, str]) -> None:
        hub = self.hub
        place = f"/api/v1/models/{hub.model}/repo"
        if path == f"{place}/files" and query.get("Recursive") == "True":
            files = [_entry(hub, name) for name in hub.files] + [{"Type": "tree", "Path": "onnx", "Name": "onnx"}]
            self.json({"Code": 200, "Success": True, "Data": {"Files": files}})
        elif path == place and query.get("FilePath") in hub.files and query.get("Revision") == hub.commit:
            self.bytes(query["FilePath"])
        else:
            self.plain(404, {}, json.dumps({"Code": 10010205001, "Message": "not found"}).encode())

    def _bos(self, path: str) -> None:
        name = path.removeprefix(f"/models/community/{self.hub.model}/")
        if name not in self.hub.files:
            self.plain(404)
            return
        data = self.hub.files[name]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        if self.hub.states_digests:
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(data).digest()).decode()
        self.bytes(name, headers)

    def _aistudio(self, path: str, query: Mapping[str, str]) -> None:
        hub = self.hub
        place = f"/api/v1/repos/{hub.model}"
        kind, _, name = path.removeprefix(f"{place}/").partition("/")
        if path == f"{place}/branches/master":
            self.json({"name": "master", "commit": {"id": hub.commit}})
        elif query.get("ref") != hub.commit:
            self.plain(404)
        elif kind == "contents" and not name:
            self.json([_content(hub, name) for name in hub.files])
        elif kind == "raw" and name in hub.files:
            self.plain(200, {}, _pointed(hub.files[name]))
        elif kind == "media" and name in hub.files:
            self.bytes(name)
        else:
            self.plain(404)


def _sibling(hub: Hub, name: str) -> dict[str, Any]:
    data = hub.files[name]
    if not hub.states_sizes:
        return {"rfilename": name}
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git_sha1(data)}
    if len(data) >= LARGE:
        entry |= {
            "blobId": _git_sha1(_pointed(data)),
            "lfs": {"sha256": _sha256(data), "size": len(data), "pointerSize": len(_pointed(data))},
        }
    return entry


def _entry(hub: Hub, name: str) -> dict[str, Any]:
    data = hub.files[name]
    common = {"Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Revision": hub.commit}
    return {**common, "Size": len(data), "Sha256": _sha256(data), "IsLFS": len(data) >= LARGE}


def _content(hub: Hub, name: str) -> dict[str, Any]:
    stored = _pointed(hub.files[name])
    return {"name": name, "path": name, "type": "file", "size": len(stored), "sha": _git_sha1(stored)}


def _pointed(data: bytes) -> bytes:
    """What git has of a file: itself, or for a large one a pointer."""
    if len(data) < LARGE:
        return data
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(data)}\nsize {len(data)}\n".encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
