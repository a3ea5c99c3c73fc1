"""Where a model lies on this machine: a folder, qvl's own store, or what another tool has already downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from qvl.errors import CheckpointError

DEMO = "demo"
_DEMO_FOLDER = Path(__file__).with_name("demo_model")  # comes with the package


def qvl_home() -> Path:
    """`$QVL_HOME`, else `qvl` in the platform's cache folder. Not created here.

    Raises CheckpointError when neither is known.
    """
    if os.environ.get("QVL_HOME"):
        return _expanded(os.environ["QVL_HOME"])
    home = _home()
    if home is None:
        raise CheckpointError("there is no home folder to keep models in; set QVL_HOME to one for them")
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "qvl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "qvl"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "qvl"


def find(model: str | Path) -> Path | None:
    """The checkpoint folder of a model, or None when it is not here. Never touches the network.

    Raises CheckpointError for a place that may not be looked into.
    """
    if str(model) == DEMO:
        return _DEMO_FOLDER
    try:
        folder = _expanded(model)
        if folder.is_dir():
            return folder
        return next((place for place in _places(str(model)) if (place / "config.json").is_file()), None)
    except (OSError, ValueError) as error:
        raise _unreadable(error, str(model)) from None


def locate(model: str | Path) -> Path:
    """Like `find`, and an error where that has nothing.

    Raises CheckpointError that says where was looked and what to do.
    """
    found = find(model)
    if found is not None:
        return found
    if "/" not in str(model) or str(model).startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: no such model folder")
    raise CheckpointError(
        f"{model} is not on this machine (looked in {qvl_home() / 'models'} and the caches of Hugging Face and "
        "ModelScope); get it with any of their tools, or give its folder with --model DIR"
    )


def _home() -> Path | None:
    """The user's home folder; None in a container whose user has neither $HOME nor an entry in passwd."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(f"{path}: the home folder that ~ stands for is not known") from None


def _unreadable(error: OSError | ValueError, place: str) -> CheckpointError:
    why = error.strerror or error if isinstance(error, OSError) else error
    return CheckpointError(f"{getattr(error, 'filename', None) or place}: cannot be read ({why})")


def _places(model: str) -> Iterator[Path]:
    """Folders a hub id such as "Qwen/Qwen2-VL-2B-Instruct" may be in, the surest first."""
    if model.count("/") != 1:
        return
    yield qvl_home() / "models" / model
    cache = Path(os.environ.get("XDG_CACHE_HOME") or (_home() or qvl_home()) / ".cache")
    hf_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    repository = Path(os.environ.get("HF_HUB_CACHE") or hf_home / "hub") / f"models--{model.replace('/', '--')}"
    revision = repository / "refs" / "main"
    if revision.is_file():
        yield repository / "snapshots" / revision.read_text(encoding="utf-8").strip()
    modelscope = Path(os.environ.get("MODELSCOPE_CACHE") or cache / "modelscope" / "hub")
    yield modelscope / "models" / model
    yield modelscope / model
