"""Where a model lies on this machine: a folder, qvl's own store, or what another tool has already downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from qvl.errors import CheckpointError
from qvl.hub import manifest
from qvl.hub.lock import BusyError, Lock, download_lock, held_by, read_lock, shared
from qvl.hub.places import Place, expanded, is_hub_id, places, store_folder
from qvl.hub.store import is_whole, note_use, partial_folder

DEMO = "demo"
_DEMO_FOLDER = Path(__file__).with_name("demo_model")  # comes with the package
# What this process has loaded, with the lock that keeps it in place.
_leases: dict[Path, Lock | None] = {}


def find(model: str | Path) -> Path | None:
    """The checkpoint folder of a model, or None when it is not here. Never touches the network.

    model: a folder, a hub id, or the short name of a published model.

    Raises CheckpointError for a place that may not be looked into.
    """
    if str(model) == DEMO:
        return _DEMO_FOLDER
    try:
        folder = expanded(model)
        if folder.is_dir():
            return folder
        named = places(_full_name(str(model)))
        # Other tools leave folders with a few files of a model in them, which are no model, or may not be looked into.
        whole = (place.folder for place in named if _is_own(place) or is_whole(place.folder))
        return next(whole, None)
    except (OSError, ValueError) as error:
        raise _unreadable(error, str(model)) from None


def _is_own(place: Place) -> bool:
    """Whether qvl has it. Raises OSError where the folder that the user set may not be looked into."""
    try:
        return place.keeper == "qvl" and (place.folder / "config.json").is_file()
    except OSError:
        if os.environ.get("QVL_HOME"):
            raise
        return False  # somebody else's home folder, as in a container that runs as another user


def locate(model: str | Path) -> Path:
    """Like `find`, and an error where that has nothing.

    The folder of a model that qvl has downloaded is kept from being removed until the process ends.
    Raises CheckpointError that says what to do.
    """
    found = find(model)
    if found is not None:
        _lease(found)
        if found.is_dir():
            return found
    name = _full_name(str(model))
    if "/" not in name or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: no such model folder")
    raise CheckpointError(_missing(name))


def _full_name(model: str) -> str:
    if "/" in model:
        return model
    from qvl.hub.names import full_name  # only here, since profiles are read for it

    return full_name(model)


def _lease(folder: Path) -> None:
    """Share the folder's lock for the rest of the process, and remember that it was used."""
    if folder in _leases or not (folder / manifest.NAME).is_file():
        return
    try:
        _leases[folder] = shared(read_lock(folder))
    except BusyError as error:
        raise CheckpointError(f"{folder}: is being removed by {error}") from None
    note_use(folder)


def _missing(model: str) -> str:
    """Why a model is not here, and the one command that helps."""
    if not is_hub_id(model):
        return f"{model}: no such model folder"
    target = store_folder() / model
    if (holder := held_by(download_lock(target))) is not None:
        return f"{model} is being downloaded by {holder}; it can be loaded when that is done"
    # Only here, since profiles are read for it.
    from qvl.hub.names import short_name

    command = f"qvl download {short_name(model)}"
    if partial_folder(target).is_dir():
        return f"{model} is here in part only; go on with: {command}"
    return f"{model} is not on this machine; get it with: {command}"


def _unreadable(error: OSError | ValueError, place: str) -> CheckpointError:
    why = error.strerror or error if isinstance(error, OSError) else error
    return CheckpointError(f"{getattr(error, 'filename', None) or place}: cannot be read ({why})")
