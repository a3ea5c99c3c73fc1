"""The models that are here, and what is wrong with them as far as headers and small files tell."""

from __future__ import annotations

import shutil
from pathlib import Path

from qvl.doctor.records import Model, Store
from qvl.errors import QvlError
from qvl.hub.locate import find, locate
from qvl.hub.places import store_folder
from qvl.hub.store import list_models
from qvl.model.checkpoint import Layout, find_pickle, find_shards, list_tensors
from qvl.model.config import ModelConfig
from qvl.model.foreign import foreign_of
from qvl.model.quantization import stored_quantization, tensor_names
from qvl.model.safetensors_io import SafetensorsFile
from qvl.model.shapes import parameter_shapes
from qvl.profile import Profile


def models() -> tuple[tuple[Model, ...], str]:
    """Every model on this machine, and why there is no list of them, if there is none."""
    try:
        stored = list_models()
    except (QvlError, OSError) as error:
        return (), str(error)
    found = []
    for model in stored:
        whole = model.state in ("verified", "unverified")
        wrong = flaw(model.folder) if whole else ""
        state = "damaged" if wrong else model.state
        found.append(Model(model.id, str(model.folder), model.bytes, model.keeper, state, wrong))
    return tuple(found), ""


def flaw(folder: Path, layout: Layout | None = None) -> str:
    """What keeps a folder's weights from being loaded, from their headers alone; nothing where all is well."""
    try:
        config = ModelConfig.from_folder(folder)
        if find_pickle(folder) is not None:
            return ""  # cannot be looked into without running what is in it
        stored = stored_quantization(folder)
        foreign = foreign_of(folder)
        if stored is not None:
            wanted = tensor_names(config, stored)
        elif foreign is not None:
            wanted = foreign.tensor_names(parameter_shapes(config))
        else:
            wanted = list(parameter_shapes(config))
        there = set(list_tensors(folder, layout)) if stored is None else _names(folder)
    except QvlError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{folder}: cannot be read ({error})"
    missing = [name for name in wanted if name not in there]
    return f"{folder}: {len(missing)} tensors are missing, {missing[0]} first" if missing else ""


def _names(folder: Path) -> set[str]:
    """Names in the files of a folder, as they stand there."""
    names: set[str] = set()
    for path in find_shards(folder):
        with SafetensorsFile(path) as file:
            names |= file.tensors.keys()
    return names


def unusable(profile: Profile) -> str:
    """Why the model of a profile could not be opened; nothing where it could."""
    try:
        # Which raises for a model that is not here. One that is here it would note as used.
        folder = find(profile.model) or locate(profile.model)
        layout: Layout | None = None if profile.weight_layout == "auto" else profile.weight_layout
        found = flaw(folder, layout)
        if found:
            return found
        if find_pickle(folder) is not None and not profile.allow_pickle:
            return f"{folder}: its weights are pickled; --allow-pickle reads them if you trust their maker"
        from qvl.reading import load_processor

        load_processor(folder, ModelConfig.from_folder(folder), profile)
    except QvlError as error:
        return str(error)
    except ImportError as error:
        return f"{profile.model}: its files cannot be read here ({error})"
    return ""


def _existing(folder: Path) -> Path | None:
    """The folder, or the nearest above it that is there."""
    return next((place for place in (folder, *folder.parents) if place.is_dir()), None)


def store() -> Store:
    """qvl's own folder for models, whether it is there yet or not."""
    try:
        folder = store_folder()
    except QvlError as error:
        return Store("", None, str(error))
    there = _existing(folder)
    try:
        return Store(str(folder), shutil.disk_usage(there).free if there is not None else None)
    except OSError as error:
        return Store(str(folder), None, str(error.strerror or error))
