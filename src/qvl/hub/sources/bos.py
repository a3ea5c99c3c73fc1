"""PaddleNLP's own storage, BOS, with weights in Paddle's layout: plain files under known names, and no list of them.

The index says which shards there are; sizes, and digests where there are any, are in the headers of each file.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from requests.auth import AuthBase

from qvl.hub.digest import Digest
from qvl.hub.remote import CONFIG, INDEX, PICKLE, SINGLE, SMALL_FILES, Listing, RemoteFile, SourceError, check_name
from qvl.hub.web import Headers, Web, endpoint

_DEFAULT = "https://bj.bcebos.com/paddlenlp"
_MOST_INDEX = 16 * 1024 * 1024


class Bos:
    key = "bos"
    name = "PaddleNLP's BOS"

    def auth(self) -> AuthBase | None:
        return None

    def listing(self, model: str, revision: str | None, web: Web) -> Listing:  # noqa: ARG002 -- it has no revisions
        place = f"{endpoint(('PPNLP_ENDPOINT',), _DEFAULT)}/models/community/{quote(model)}/"
        config = _asked(CONFIG, place, web)
        if config is None:
            raise SourceError(f"it has no model of the name {model}")
        found = [config, *(_asked(name, place, web) for name in SMALL_FILES if name != CONFIG)]
        index = _asked(INDEX, place, web)
        if index is not None:
            found += [index, *_shards(index, place, web)]
        else:
            found += [_asked(SINGLE, place, web) or _asked(PICKLE, place, web)]
        return Listing(self.key, model, "", tuple(file for file in found if file is not None))


def _shards(index: RemoteFile, place: str, web: Web) -> list[RemoteFile]:
    try:
        names = sorted({str(name) for name in json.loads(web.start_of(index.url, _MOST_INDEX))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"its {INDEX} is damaged") from None
    shards = []
    for name in names:
        check_name(name)
        shard = _asked(name, place, web)
        if shard is None:
            raise SourceError(f"it lacks {name}, which its index names")
        shards.append(shard)
    return shards


def _asked(name: str, place: str, web: Web) -> RemoteFile | None:
    """What the headers of a file say of it; None when there is no such file."""
    url = place + quote(name)
    try:
        headers = web.head(url)
    except SourceError as failure:
        if failure.status in (403, 404):  # storage that may not be listed says 403 of what is not there
            return None
        raise
    size = headers.get("Content-Length") or ""
    if not size.isdecimal():
        raise SourceError(f"the size of {name} is stated nowhere")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    return RemoteFile(name, int(size), url, _digest(headers), tag)


def _digest(headers: Headers) -> Digest | None:
    """BOS states a sha256 that the uploader gave; Content-MD5 for what was uploaded in one piece; else nothing."""
    sha256 = Digest("sha256", (headers.get("x-bce-content-sha256") or "").lower())
    if sha256.is_sound:
        return sha256
    try:
        md5 = Digest("md5", base64.b64decode(headers.get("Content-MD5") or "", validate=True).hex())
    except ValueError:
        return None
    return md5 if md5.is_sound else None
