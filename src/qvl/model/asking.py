"""How a result of training is to be asked: its template, and where answers end."""

from __future__ import annotations

import json
from pathlib import Path

from qvl.errors import CheckpointError
from qvl.model.checkpoint_writer import write_json

FILE = "qvl.json"  # beside PEFT's own, which knows no template and reads no other file
_TEMPLATES = ("chat", "none")


def record_template(adapter: Path, template: str, turn_end: int) -> None:
    """Note in an adapter's folder which template it was trained with, and the token that ends a turn in "chat"."""
    write_json(adapter / FILE, {"template": template, "turn_end": turn_end})


def recorded_template(adapter: Path) -> str | None:
    """The template of an adapter's folder; None for one that was not trained by qvl. Raises CheckpointError."""
    recorded = _recorded(adapter)
    return None if recorded is None else recorded[0]


def _recorded(adapter: Path) -> tuple[str, int] | None:
    path = adapter / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        template, turn_end = data["template"], int(data["turn_end"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error!r})") from None
    if template not in _TEMPLATES:
        raise CheckpointError(f"{path}: template is {template!r}; {' or '.join(_TEMPLATES)} was expected")
    return template, turn_end


def end_answers_as(adapter: Path, model: Path, fallback: int | tuple[int, ...] | None) -> None:
    """Have answers of a model that an adapter was merged into end where it was taught to; as `end_answers_at`."""
    recorded = _recorded(adapter)
    if recorded is not None and recorded[0] == "chat":
        end_answers_at(model, recorded[1], fallback)


def end_answers_at(model: Path, token_id: int, fallback: int | tuple[int, ...] | None) -> None:
    """Have answers of a saved model end at a token too: base models that learn conversations are not set up for it.

    fallback: what ends them where `generation_config.json` does not say, as that of config.json.
    """
    path = model / "generation_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = settings.get("eos_token_id")
    except (ValueError, AttributeError):  # damaged before, in the model that this one was made of
        return
    found = fallback if found is None else found
    ends = list(found) if isinstance(found, (list, tuple)) else [] if found is None else [found]
    if token_id not in ends:
        write_json(path, {**settings, "eos_token_id": [token_id, *ends]})
