"""What a model may be called: a profile, a short name of a published one, its hub id or the last part of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvl.errors import UsageError, suggest
from qvl.hub.places import is_hub_id
from qvl.profile import load_profile
from qvl.profile_files import known_files

_DEMO = "demo"
_SIZES = ("2B", "7B", "72B")
_FORMS = {
    "": "-Instruct",
    "-base": "",
    "-awq": "-Instruct-AWQ",
    "-gptq-int4": "-Instruct-GPTQ-Int4",
    "-gptq-int8": "-Instruct-GPTQ-Int8",
}
# The published checkpoints by short name: 2b, 2b-base, 2b-awq and so on.
PUBLISHED = {f"{size.lower()}{form}": f"Qwen/Qwen2-VL-{size}{end}" for size in _SIZES for form, end in _FORMS.items()}


@dataclass(frozen=True)
class Named:
    """What a name stands for. model: a hub id. source: the order of sources that the profile asks for."""

    model: str
    source: str = "auto"


def resolve(name: str) -> Named:
    """The model of a name; letter case does not matter for published ones.

    Raises UsageError for an unknown name, with the nearest, and for a profile whose model is a folder.
    """
    if name.endswith((".yaml", ".yml")) or any(file.stem == name for file in known_files()):
        return _of_profile(name)
    for short, model in PUBLISHED.items():
        if name.lower() in (short, model.lower(), model.partition("/")[2].lower()):
            return Named(model)
    if is_hub_id(name):
        return Named(name)
    near = suggest(name, [*PUBLISHED, *PUBLISHED.values(), *(file.stem for file in known_files())])
    raise UsageError(f"no model or profile '{name}'{near or '; a hub id has the form Qwen/Qwen2-VL-2B-Instruct'}")


def full_name(model: str) -> str:
    """The hub id of a published model's short name; any other name as it is."""
    return PUBLISHED.get(model.lower(), model)


def short_name(model: str) -> str:
    """The shortest name that `qvl download` takes for a hub id."""
    return next((short for short, known in PUBLISHED.items() if known == model), model)


def _of_profile(name: str) -> Named:
    profile = load_profile(name)
    if profile.model == _DEMO:
        raise UsageError(f"profile '{name}' has the model that comes with qvl; there is nothing to download")
    if not is_hub_id(profile.model) or Path(profile.model).expanduser().is_dir():
        raise UsageError(f"profile '{name}' takes its model from the folder {profile.model}")
    return Named(profile.model, profile.source)
