"""qvl: run and teach Qwen2-VL on PaddlePaddle.

`Engine`, `Message` and the records around them are imported on first use, so that `import qvl` is quick and pulls in
neither Paddle nor Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl.errors import QvlError
    from qvl.messages import Image, Message, Text, Video
    from qvl.profile import Profile
    from qvl.runtime.engine import Engine
    from qvl.runtime.records import Answer, Chunk, Finished, Request, Sampling, Stats
    from qvl.runtime.session import Session

__version__ = "0.1.0"

_HOMES = {
    "Answer": "qvl.runtime.records",
    "Chunk": "qvl.runtime.records",
    "Engine": "qvl.runtime.engine",
    "Finished": "qvl.runtime.records",
    "Image": "qvl.messages",
    "Message": "qvl.messages",
    "Profile": "qvl.profile",
    "QvlError": "qvl.errors",
    "Request": "qvl.runtime.records",
    "Sampling": "qvl.runtime.records",
    "Session": "qvl.runtime.session",
    "Stats": "qvl.runtime.records",
    "Text": "qvl.messages",
    "Video": "qvl.messages",
}

__all__ = [
    "Answer",
    "Chunk",
    "Engine",
    "Finished",
    "Image",
    "Message",
    "Profile",
    "QvlError",
    "Request",
    "Sampling",
    "Session",
    "Stats",
    "Text",
    "Video",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qvl' has no attribute {name!r}")
