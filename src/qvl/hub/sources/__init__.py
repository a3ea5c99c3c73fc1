"""Where models may be downloaded from. Each source lists what it has of a model; all move bytes in the same way.

The order in which `auto` tries them is the user's to set: a flag, `QVL_SOURCE`, or the profile's `source`.
"""

from __future__ import annotations

import os
from typing import Protocol

from requests.auth import AuthBase

from qvl.errors import UsageError, suggest
from qvl.hub.remote import Listing
from qvl.hub.sources import aistudio, bos, huggingface, modelscope
from qvl.hub.web import Web

AUTO = "auto"


class Source(Protocol):
    """A place on the network that has models."""

    key: str
    name: str

    def auth(self) -> AuthBase | None:
        """What shows who is asking, from where the source's own tools look for it; never shown to anybody else."""

    def listing(self, model: str, revision: str | None, web: Web) -> Listing:
        """What there is of a model, at a commit that it fixes. Raises SourceError."""


SOURCES: dict[str, Source] = {
    source.key: source
    for source in (huggingface.HuggingFace(), modelscope.ModelScope(), bos.Bos(), aistudio.AIStudio())
}
_SHORT = {"hf": "huggingface", "ms": "modelscope"}


def parse_order(text: str, where: str) -> tuple[Source, ...]:
    """The sources of "auto", of one name, or of several with commas between, "auto" for all that are not named.

    Raises UsageError that begins with `where`.
    """
    keys: list[str] = []
    for word in (part.strip().lower() for part in text.split(",")):
        key = _SHORT.get(word, word)
        if key != AUTO and key not in SOURCES:
            near = suggest(key, [*SOURCES, AUTO]) or f"; there are {', '.join((AUTO, *SOURCES))}"
            raise UsageError(f"{where}: no source '{word}'{near}")
        keys += [key] if key != AUTO else SOURCES
    return tuple(SOURCES[key] for key in dict.fromkeys(keys))


def chosen_order(flag: str | None, profile: str) -> tuple[Source, ...]:
    """The order that was asked for: by flag, else by `QVL_SOURCE`, else by the profile. Raises UsageError."""
    if flag is not None:
        return parse_order(flag, "--source")
    if asked := os.environ.get("QVL_SOURCE"):
        return parse_order(asked, "QVL_SOURCE")
    return parse_order(profile, "source")
