"""AI Studio, where PaddlePaddle's users keep models: a Gitea server, whose large files are behind LFS pointers.

Its client (0.2.6) neither goes on after a cut nor compares digests.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from requests.auth import AuthBase

from qvl.hub.digest import Digest
from qvl.hub.remote import Listing, RemoteFile, SourceError
from qvl.hub.sources.tokens import Token, from_file, usable
from qvl.hub.web import Web, endpoint, host

_DEFAULT = "https://git.aistudio.baidu.com"
_BRANCH = "master"
_MOST_POINTER = 512
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n?")
_LARGE = (".safetensors", ".pdparams", ".json", ".txt")  # what may be behind a pointer and is of use


class AIStudio:
    key = "aistudio"
    name = "AI Studio"

    def auth(self) -> AuthBase | None:
        """`AISTUDIO_ACCESS_TOKEN`, or the file that its tools write."""
        given = os.environ.get("AISTUDIO_ACCESS_TOKEN") or os.environ.get("AISTUDIO_TOKEN")
        token = usable(given) or from_file(_home() / "token")
        return Token(token, form="token {}") if token else None

    def listing(self, model: str, revision: str | None, web: Web) -> Listing:
        base = endpoint(("AISTUDIO_ENDPOINT", "STUDIO_GIT_HOST"), _DEFAULT)
        place = f"{base}/api/v1/repos/{quote(model)}"
        try:
            commit = revision or str(web.json(f"{place}/branches/{_BRANCH}")["commit"]["id"])
            entries = web.json(f"{place}/contents?ref={quote(commit, safe='')}")
            files = tuple(_file(entry, place, commit, web) for entry in entries if entry.get("type") == "file")
        except (KeyError, TypeError, AttributeError):
            raise SourceError(f"{host(base)} answered with something else than a list of files") from None
        return Listing(self.key, model, commit, files)


def _file(entry: Any, place: str, commit: str, web: Web) -> RemoteFile:
    """A file by its entry, which for a large one is about the pointer in its place."""
    path, size, reference = str(entry["path"]), int(entry["size"]), f"?ref={quote(commit, safe='')}"
    url = f"{place}/media/{quote(path)}{reference}"
    if path.endswith(_LARGE):
        start = web.start_of(f"{place}/raw/{quote(path)}{reference}", _MOST_POINTER)
        if pointer := _POINTER.fullmatch(start):
            return RemoteFile(path, int(pointer[2]), url, Digest("sha256", pointer[1].decode()))
    return RemoteFile(path, size, url, Digest("git-sha1", str(entry["sha"])))


def _home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return Path(os.environ.get("AISTUDIO_HOME") or cache / "paddle")
