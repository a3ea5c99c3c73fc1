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
    from qvl.runtime.records import Answer, Chunk, Sampling, Stats

__version__ = "0.1.0"

_HOMES = {
    "Answer": "qvl.runtime.records",
    "Chunk": "qvl.runtime.records",
    "Engine": "qvl.runtime.engine",
    "Image": "qvl.messages",
    "Message": "qvl.messages",
    "Profile": "qvl.profile",
    "QvlError": "qvl.errors",
    "Sampling": "qvl.runtime.records",
    "Stats": "qvl.runtime.records",
    "Text": "qvl.messages",
    "Video": "qvl.messages",
}

__all__ = [
    "Answer",
    "Chunk",
    "Engine",
    "Image",
    "Message",
    "Profile",
    "QvlError",
    "Sampling",
    "Stats",
    "Text",
    "Video",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qvl' has no attribute {name!r}")
