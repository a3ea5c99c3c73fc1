"""What is installed, without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from qvl import __version__

_PADDLES = ("paddlepaddle", "paddlepaddle-gpu")
# Named even when they are missing, in the order they are shown.
_ALWAYS = ("numpy", "tokenizers", "pillow")
_NEEDED = (*_ALWAYS, "paddlenlp")
_OPTIONAL = ("av", "decord", "huggingface_hub", "modelscope", "aistudio-sdk", "safetensors", "psutil", "rich", "typer")


def versions() -> dict[str, str]:
    """Distribution and version, an empty one for what is missed; qvl and Python first."""
    found = {"qvl": __version__, "python": platform.python_version()}
    paddles = {name: installed for name in _PADDLES if (installed := _version(name))}
    found |= paddles or {"paddlepaddle": ""}
    found |= {name: _version(name) for name in _NEEDED}
    found |= {name: installed for name in _OPTIONAL if (installed := _version(name))}
    return found


def missing(found: dict[str, str]) -> list[str]:
    """What nothing works without, and is not there."""
    names = [name for name in _ALWAYS if not found.get(name)]
    return [f"{name} is not installed, and nothing works without it: install qvl again" for name in names]


def remarks(found: dict[str, str]) -> list[str]:
    """What of the versions is worth a word."""
    said = []
    if all(found.get(name) for name in _PADDLES):
        said.append("paddlepaddle and paddlepaddle-gpu are both installed and hide each other: uninstall one")
    if not found.get("decord") and not found.get("av"):
        said.append("no video reader is installed, so clips cannot be read: pip install av")
    return said


def system() -> str:
    """The operating system in a few words."""
    return " ".join(filter(None, (platform.system(), platform.release(), platform.machine())))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
