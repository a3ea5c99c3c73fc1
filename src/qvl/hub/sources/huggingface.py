"""Hugging Face and its mirrors: the model interface for the list, `resolve` at the commit for the bytes.

huggingface_hub says which token is in use. Why it does not also fetch the bytes is in docs/architecture.md.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from requests.auth import AuthBase

from qvl.hub.digest import Digest
from qvl.hub.remote import Listing, RemoteFile, SourceError
from qvl.hub.sources.tokens import Token, usable
from qvl.hub.web import Headers, Web, endpoint, host

_DEFAULT = "https://huggingface.co"


class HuggingFace:
    key = "huggingface"
    name = "Hugging Face"

    def auth(self) -> AuthBase | None:
        """`HF_TOKEN`, the file that `hf auth login` writes, or what else huggingface_hub knows."""
        if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
            return None
        from huggingface_hub import get_token

        token = usable(get_token())
        return Token(token) if token else None

    def listing(self, model: str, revision: str | None, web: Web) -> Listing:
        base = endpoint(("HF_ENDPOINT",), _DEFAULT)
        answer = web.json(f"{base}/api/models/{model}/revision/{quote(revision or 'main', safe='')}?blobs=true")
        try:
            commit = str(answer["sha"])
            entries = [(str(entry["rfilename"]), entry) for entry in answer["siblings"]]
        except (KeyError, TypeError):
            raise SourceError(f"{host(base)} answered with something else than the list of a model") from None
        if not commit.isalnum():
            raise SourceError(f"{host(base)} names no commit")
        place = f"{base}/{model}/resolve/{commit}/"
        listing = Listing(self.key, model, commit, tuple(_file(path, entry, place) for path, entry in entries))
        if all(file.size >= 0 for file in listing.files):
            return listing
        # A mirror that leaves sizes out of its lists states them in the headers of each file.
        wanted = {file.path for file in Listing(self.key, model, commit, _guessed(listing.files)).needed()}
        files = (_asked(file, web) if file.size < 0 and file.path in wanted else file for file in listing.files)
        return Listing(self.key, model, commit, tuple(files))


def _file(path: str, entry: Any, place: str) -> RemoteFile:
    lfs = entry.get("lfs") or {}
    size = lfs.get("size", entry.get("size"))
    digest = None
    if sha256 := lfs.get("sha256") or lfs.get("oid"):
        digest = Digest("sha256", str(sha256).removeprefix("sha256:"))
    elif blob := entry.get("blobId"):
        digest = Digest("git-sha1", str(blob))
    return RemoteFile(path, size if isinstance(size, int) else -1, place + quote(path), digest)


def _guessed(files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    """The same files with sizes that let `needed` choose among them."""
    return tuple(RemoteFile(file.path, 0, file.url) for file in files)


def _asked(file: RemoteFile, web: Web) -> RemoteFile:
    headers = web.head(file.url)
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    if not size.isdecimal():
        raise SourceError(f"the size of {file.path} is stated nowhere")
    return RemoteFile(file.path, int(size), file.url, file.digest or _etag_digest(headers))


def _etag_digest(headers: Headers) -> Digest | None:
    """The ETag of the hub itself is the sha256 of a large file and git's sha1 of a small one."""
    etag = (headers.get("X-Linked-ETag") or "").removeprefix("W/").strip('"')
    for digest in (Digest("sha256", etag), Digest("git-sha1", etag)):
        if digest.is_sound:
            return digest
    return None
