"""Which model an adapter belongs to, and where that lies."""

from __future__ import annotations

from pathlib import Path

from qvl.errors import CheckpointError, UsageError
from qvl.hub.locate import find, locate
from qvl.model.adapter_config import AdapterConfig, AdapterRequest


def base_name(request: str) -> str:
    """The model that an adapter, given as "DIR" or "name=DIR:scale", says it was trained on: a hub id or a folder.

    Raises CheckpointError for what is no adapter folder, UsageError when it does not say.
    """
    folder = AdapterRequest.parse(request).folder
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such adapter folder")
    name = AdapterConfig.from_folder(folder).base_model
    if not name:
        raise UsageError(f"{folder}: the adapter does not say which model it is for; name that model as well")
    return name


def locate_base(adapter: Path) -> Path:
    """The folder of the model that an adapter belongs to. Raises QvlError."""
    name = base_name(f"adapter={adapter}")
    if find(name) is None:
        raise CheckpointError(f"{name}, which the adapter in {adapter} names as its base, is not on this machine")
    return locate(name)
