"""Which model an adapter belongs to, and where that lies."""

from __future__ import annotations

from qvl.errors import CheckpointError, UsageError
from qvl.model.adapter_config import AdapterConfig, AdapterRequest
from qvl.model.asking import recorded_template


def template_of(request: str) -> str | None:
    """The template that an adapter, given as "DIR" or "name=DIR:scale", was trained with; None where it does not say.

    Raises UsageError for another form, CheckpointError for a damaged file.
    """
    return recorded_template(AdapterRequest.parse(request).folder)


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
