"""Every error that qvl raises on purpose.

The library raises these and nothing else for things a user can cause; only the command line turns them into exit
codes. A message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

PADDLE_MISSING = "Paddle is not installed: pip install 'qvl[cpu]', or see the README for a GPU"


class QvlError(Exception):
    """Something the user can understand and act on. Exit code 1."""

    exit_code = 1


class UsageError(QvlError):
    """The request itself is wrong: a flag, a key, a role, a file format of ours. Exit code 2."""

    exit_code = 2


class ContextLimitError(UsageError):
    """A conversation has more tokens than the context holds.

    tokens: of the prompt, `vision_tokens` of them pictures and clips. limit: of prompt and answer together.
    """

    def __init__(self, tokens: int, vision_tokens: int, limit: int) -> None:
        advice = "lower --max-pixels or --max-frames, or send less" if vision_tokens else "send less"
        super().__init__(
            f"the prompt has {tokens} tokens ({vision_tokens} of them vision), the context holds {limit}; {advice}"
        )
        self.tokens, self.vision_tokens, self.limit = tokens, vision_tokens, limit


class MediaError(QvlError):
    """A picture or clip could not be had or read."""


class CheckpointError(QvlError):
    """A model folder is incomplete, damaged, or of a kind qvl does not run."""


class UnknownLayoutError(CheckpointError):
    """Weights that do not say in which layout their matrices are. what: said of them, without what to do about it."""

    def __init__(self, what: str, remedy: str = "--set weight_layout=hf or weight_layout=paddle") -> None:
        super().__init__(f"{what}; say {remedy}")
        self.what = what


class DownloadError(QvlError):
    """A model could not be downloaded, checked or removed."""


class MemoryLimitError(QvlError):
    """The run would not fit in the memory of the device."""


class UnforeseenError(QvlError):
    """What one of many requests ended with and nobody foresaw, as "TypeName: text"; `__cause__` is the error itself."""


class DeviceError(QvlError):
    """The device, dtype or native ops asked for are not available here."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean '{near[0]}'?" if near else ""
