"""Where models may lie on this machine: qvl's own store, and the caches of other tools."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvl.errors import CheckpointError

Keeper = Literal["qvl", "huggingface", "modelscope", "paddlenlp"]
KEEPERS: dict[Keeper, str] = {
    "qvl": "qvl",
    "huggingface": "Hugging Face's cache",
    "modelscope": "ModelScope's cache",
    "paddlenlp": "PaddleNLP's cache",
}


_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Place:
    """A folder that a model may be in, and whose it is."""

    folder: Path
    keeper: Keeper


def qvl_home() -> Path:
    """`$QVL_HOME`, else `qvl` in the platform's cache folder. Not created here.

    Raises CheckpointError when neither is known.
    """
    if os.environ.get("QVL_HOME"):
        return expanded(os.environ["QVL_HOME"])
    home = _home()
    if home is None:
        raise CheckpointError("there is no home folder to keep models in; set QVL_HOME to one for them")
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "qvl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "qvl"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "qvl"


def expanded(path: str | Path) -> Path:
    """`~` replaced. Raises CheckpointError where it stands for nothing."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(f"{path}: the home folder that ~ stands for is not known") from None


def store_folder() -> Path:
    """Where qvl keeps the models it has downloaded, as ORGANISATION/NAME."""
    return qvl_home() / "models"


def is_hub_id(model: str) -> bool:
    """Whether it has the form ORGANISATION/NAME and can be a path below a cache: no `..`, nothing absolute."""
    return _HUB_ID.fullmatch(model) is not None


def places(model: str) -> Iterator[Place]:
    """Folders that a hub id such as "Qwen/Qwen2-VL-2B-Instruct" may be in, the surest first. They need not exist."""
    if not is_hub_id(model):
        return
    yield Place(store_folder() / model, "qvl")
    snapshot = _snapshot(huggingface_cache() / f"models--{model.replace('/', '--')}")
    if snapshot is not None:
        yield Place(snapshot, "huggingface")
    # ModelScope writes a dot in the name as three underscores, but not always has.
    for name in dict.fromkeys((model, model.replace(".", "___"))):
        for root in modelscope_caches():
            yield Place(root / name, "modelscope")
    yield Place(paddlenlp_cache() / model, "paddlenlp")


def holds(folder: Path, name: str = "") -> bool:
    """Whether a folder, or something of that name in it, is there; what may not be looked at is not."""
    try:
        return (folder / name).exists()
    except OSError:
        return False


def foreign_models() -> Iterator[tuple[str, Place]]:
    """Every model folder in other tools' caches, with its hub id, whatever kind of model it is."""
    for repository in _folders(huggingface_cache()):
        kind, *parts = repository.name.split("--")
        if kind == "models" and len(parts) >= 2 and (snapshot := _snapshot(repository)) is not None:
            yield f"{parts[0]}/{'--'.join(parts[1:])}", Place(snapshot, "huggingface")
    roots: list[tuple[Path, Keeper]] = [(root, "modelscope") for root in modelscope_caches()]
    for root, keeper in (*roots, (paddlenlp_cache(), "paddlenlp")):
        for organisation in _folders(root):
            if organisation in modelscope_caches():  # they lie in each other
                continue
            for folder in _folders(organisation):
                yield f"{organisation.name}/{folder.name.replace('___', '.')}", Place(folder, keeper)


def huggingface_cache() -> Path:
    caches = _named_folder("XDG_CACHE_HOME") or (_home() or qvl_home()) / ".cache"
    hf_home = _named_folder("HF_HOME") or caches / "huggingface"
    return _named_folder("HF_HUB_CACHE") or _named_folder("HUGGINGFACE_HUB_CACHE") or hf_home / "hub"


def modelscope_caches() -> tuple[Path, ...]:
    """Folders that hold ORGANISATION/NAME. Its versions differ in where, within the folder that a user can name."""
    # Not XDG_CACHE_HOME, which it does not heed.
    root = _named_folder("MODELSCOPE_CACHE") or (_home() or qvl_home()) / ".cache" / "modelscope"
    return (root / "hub" / "models", root / "models", root / "hub", root)


def paddlenlp_cache() -> Path:
    return (_named_folder("PPNLP_HOME") or (_home() or qvl_home()) / ".paddlenlp") / "models"


def _named_folder(variable: str) -> Path | None:
    """The folder that a variable of the environment names, `~` and `$NAME` in it replaced, as those tools do."""
    value = os.environ.get(variable)
    return Path(os.path.expandvars(os.path.expanduser(value))) if value else None  # noqa: PTH111


def _home() -> Path | None:
    """The user's home folder; None in a container whose user has neither $HOME nor an entry in passwd."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _snapshot(repository: Path) -> Path | None:
    """The snapshot of a Hugging Face repository folder that `main` stands for."""
    revision = repository / "refs" / "main"
    try:
        return repository / "snapshots" / revision.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # not there, or somebody else's and not for us to read
        return None


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, in order; none where it cannot be looked into."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
