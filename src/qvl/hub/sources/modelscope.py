"""ModelScope: one request for the list, in which each file has its sha256 and the commit that it is from.

Its client would be one more dependency, for two addresses.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlencode

from requests.auth import AuthBase

from qvl.hub.digest import Digest
from qvl.hub.remote import Listing, RemoteFile, SourceError
from qvl.hub.sources.tokens import Token, usable
from qvl.hub.web import Web, endpoint, host

_DEFAULT = "https://www.modelscope.cn"
_BRANCH = "master"


class ModelScope:
    key = "modelscope"
    name = "ModelScope"

    def auth(self) -> AuthBase | None:
        """`MODELSCOPE_API_TOKEN`. What `modelscope login` writes is a pickle, which is not read here."""
        token = usable(os.environ.get("MODELSCOPE_API_TOKEN"))
        return Token(token, "Cookie", "m_session_id={}") if token else None

    def listing(self, model: str, revision: str | None, web: Web) -> Listing:
        base = _base()
        query = urlencode({"Revision": revision or _BRANCH, "Recursive": "True"})
        answer = web.json(f"{base}/api/v1/models/{model}/repo/files?{query}")
        try:
            if answer.get("Code", 200) != 200:
                raise SourceError(f"{host(base)} does not have it ({str(answer.get('Message', ''))[:80]!a})")
            files = [entry for entry in answer["Data"]["Files"] if entry.get("Type") != "tree"]
            commits = [str(entry.get("Revision") or _BRANCH) for entry in files]
            place = f"{base}/api/v1/models/{model}/repo?"
            listed = tuple(_file(entry, commit, place) for entry, commit in zip(files, commits, strict=True))
        except (KeyError, TypeError, AttributeError):
            raise SourceError(f"{host(base)} answered with something else than a list of files") from None
        # There is no commit of the whole: files keep those they were last changed in.
        return Listing(self.key, model, revision or _BRANCH, listed)


def _file(entry: Any, commit: str, place: str) -> RemoteFile:
    path, sha256 = str(entry["Path"]), entry.get("Sha256")
    url = place + urlencode({"Revision": commit, "FilePath": path})
    return RemoteFile(path, int(entry["Size"]), url, Digest("sha256", str(sha256)) if sha256 else None, commit)


def _base() -> str:
    domain = os.environ.get("MODELSCOPE_DOMAIN", "").strip().rstrip("/")
    return endpoint(("MODELSCOPE_ENDPOINT",), f"https://{domain}" if domain and "://" not in domain else _DEFAULT)
