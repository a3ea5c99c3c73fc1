"""Where a model lies on this machine: a folder, qvl's own store, or what another tool has already downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from qvl.errors import CheckpointError
from qvl.hub.places import expanded, places, qvl_home

DEMO = "demo"
_DEMO_FILES = (
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
)


def find(model: str | Path) -> Path | None:
    """The checkpoint folder of a model, or None when it is not here. Never touches the network.

    Raises CheckpointError for a place that may not be looked into.
    """
    try:
        folder = expanded(model)
        if folder.is_dir():
            return folder
        return next((place.folder for place in places(str(model)) if (place.folder / "config.json").is_file()), None)
    except (OSError, ValueError) as error:
        raise _unreadable(error, str(model)) from None


def locate(model: str | Path) -> Path:
    """Like `find`, but makes the demo checkpoint when it is asked for and not yet there.

    Raises CheckpointError that says where was looked and what to do.
    """
    if str(model) == DEMO:
        return _demo()
    found = find(model)
    if found is not None:
        return found
    if "/" not in str(model) or str(model).startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: no such model folder")
    raise CheckpointError(
        f"{model} is not on this machine (looked in {qvl_home() / 'models'} and the caches of Hugging Face and "
        "ModelScope); get it with any of their tools, or give its folder with --model DIR"
    )


def _unreadable(error: OSError | ValueError, place: str) -> CheckpointError:
    why = error.strerror or error if isinstance(error, OSError) else error
    return CheckpointError(f"{getattr(error, 'filename', None) or place}: cannot be read ({why})")


def _demo() -> Path:
    """The checkpoint behind the demo profile: random weights, made once. Its words mean nothing."""
    # Only here, since the vocabulary it makes pulls in the tokenizers library.
    from qvl.hub.random_checkpoint import GENERATOR_VERSION, TINY, write_checkpoint

    folder = qvl_home() / "models" / f"{DEMO}-random-{GENERATOR_VERSION}"
    try:
        if _whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(f"{folder.parent}: cannot be written ({error.strerror}); set QVL_HOME") from None
    try:
        (partial / "new").mkdir()
        write_checkpoint(partial / "new", TINY, seed=0)
        if not _whole(folder) and os.path.lexists(folder):  # half of it was deleted
            folder.replace(partial / "old")
        (partial / "new").replace(folder)
    except OSError as error:
        if not _whole(folder):  # else another process was quicker, which is as good
            raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error}); set QVL_HOME") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _whole(folder: Path) -> bool:
    """Whether nothing of a checkpoint that `_demo` made is missing."""
    return all((folder / name).is_file() for name in _DEMO_FILES)
