"""What models are on this machine: those that qvl keeps, half downloaded ones, and those in other tools' caches."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvl.errors import CheckpointError
from qvl.hub import manifest, places

State = Literal["verified", "unverified", "incomplete", "partial"]
# The source of a model that was not downloaded by qvl.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine, as far as can be told without reading its weights.

    id: its hub id. folder: where its files are. bytes: their size. keeper: whose folder it is.
    source: where it came from: "huggingface", "modelscope", "bos", "aistudio", or "unknown".
    revision: the commit there. last_used: when qvl last loaded it, else when its files were last read; seconds since
    1970. verified_at: when every file was last found to be what the source stated; None: never by qvl.
    state: "verified": downloaded or checked by qvl, and every file still has its size; "unverified": whole as far as
    names tell; "incomplete": files are missing or have another size; "partial": a download that was not finished.
    """

    id: str
    folder: Path
    bytes: int
    keeper: places.Keeper
    source: str
    revision: str | None
    last_used: float | None
    verified_at: float | None
    state: State


def list_models() -> tuple[StoredModel, ...]:
    """All models of qvl's store, then Qwen2-VL models that other tools keep. Reads no weights, no network.

    Raises CheckpointError when there is no place for a store.
    """
    own = list(_own())
    foreign = (describe(model, place) for model, place in places.foreign_models() if _is_ours(place.folder))
    return (*own, *foreign)


def describe(model: str, place: places.Place) -> StoredModel:
    """What can be told of a model folder without reading its weights."""
    record = manifest.read(place.folder)
    files = [path for path in _files(place.folder) if path.name not in (manifest.NAME, manifest.USED)]
    return StoredModel(
        id=model,
        folder=place.folder,
        bytes=sum(_size(path) for path in files),
        keeper=place.keeper,
        source=record.source if record is not None else _SOURCES.get(place.keeper, UNKNOWN),
        revision=record.revision if record is not None else _revision(place),
        last_used=_last_used(place.folder, files),
        verified_at=record.verified_at if record is not None else None,
        state=_state(place.folder, record),
    )


def partial_folder(folder: Path) -> Path:
    """The hidden folder beside a model's, in which its files gather until all are there."""
    return folder.with_name(f".{folder.name}.partial")


def is_whole(folder: Path) -> bool:
    """Whether nothing is missing: by the manifest's names and sizes, else by config.json and the weights' index."""
    record = manifest.read(folder)
    return not record.broken(folder) if record is not None else _looks_whole(folder)


def is_pickled(folder: Path) -> bool:
    """Whether all that it has of weights are pickles."""
    from qvl.model.checkpoint import find_pickle

    return find_pickle(folder) is not None


def note_use(folder: Path) -> None:
    """Remember that a model was loaded now; a folder that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        (folder / manifest.USED).touch()


_SOURCES: dict[places.Keeper, str] = {"huggingface": "huggingface", "modelscope": "modelscope", "paddlenlp": "bos"}


def _own() -> Iterator[StoredModel]:
    for organisation in _folders(places.store_folder()):
        for folder in _folders(organisation):
            if folder.name.startswith(".") and folder.name.endswith(".partial"):
                yield _partial(f"{organisation.name}/{folder.name[1:].removesuffix('.partial')}", folder)
            elif not folder.name.startswith("."):
                model = f"{organisation.name}/{folder.name}"
                yield describe(model, places.Place(folder, "qvl"))


def _partial(model: str, folder: Path) -> StoredModel:
    size = sum(_size(path) for path in _files(folder))
    return StoredModel(model, folder, size, "qvl", UNKNOWN, None, None, None, "partial")


def _state(folder: Path, record: manifest.Manifest | None) -> State:
    if record is None:
        return "unverified" if _looks_whole(folder) else "incomplete"
    return "incomplete" if record.broken(folder) else "verified"


def _looks_whole(folder: Path) -> bool:
    """Whether config.json, a tokenizer and every shard that the index names are there."""
    from qvl.model.checkpoint import find_pickle, find_shards  # NumPy comes with it, and --help is to be quick

    try:
        if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
            return False
        return find_pickle(folder) is not None or bool(find_shards(folder))
    except (CheckpointError, OSError):
        return False


def _is_ours(folder: Path) -> bool:
    """Whether it is a model of the kind that qvl runs."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "qwen2_vl"


def _revision(place: places.Place) -> str | None:
    return place.folder.name if place.keeper == "huggingface" else None


def _last_used(folder: Path, files: list[Path]) -> float | None:
    """When it was loaded by qvl; else when a file was last read, as far as the file system keeps that."""
    try:
        return (folder / manifest.USED).stat().st_mtime
    except OSError:
        times = [path.stat().st_atime for path in files if path.exists()]
        return max(times, default=None)


def _files(folder: Path) -> list[Path]:
    """Every file below a folder; links to files count."""
    return [Path(top) / name for top, _, names in os.walk(folder) for name in names]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
