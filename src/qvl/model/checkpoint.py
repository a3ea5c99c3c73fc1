"""What lies in a checkpoint folder: which file holds which tensor, in which layout. No Paddle, no tensor data.

Two layouts exist: Hugging Face stores a linear weight as [out, in], Paddle as [in, out]. Square matrices look the same
either way, so the layout is taken from the file's metadata and never guessed from shapes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvl.errors import CheckpointError, UnknownLayoutError
from qvl.model.safetensors_io import SafetensorsFile

Layout = Literal["hf", "paddle"]
LAYOUTS: dict[str, Layout] = {"pt": "hf", "paddle": "paddle", "np": "paddle"}

LM_HEAD = "lm_head.weight"
PATCH_EMBED = "visual.patch_embed.proj.weight"
# What makes a folder complete beside config.json and the weights; not every checkpoint has each.
PROCESSOR_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("model_state.pdparams", "pytorch_model.bin", "pytorch_model.bin.index.json")
# transformers from 4.52 on may write these; the published files have the short form.
_RENAMES = (
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)
# Tables that old versions saved although they follow from the configuration.
_DERIVED = re.compile(r"(rotary_emb|rotary_pos_emb)\.inv_freq$")


@dataclass(frozen=True)
class Entry:
    """One tensor: the file it is in, its name there, its stored dtype, shape and layout."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: Layout


def canonical_name(name: str) -> str:
    """The published name of a tensor, whichever transformers release wrote it."""
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in a fixed order.

    Raises CheckpointError for a missing folder or shard, a damaged index, or when only pickles are there.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: damaged index ({error!r})") from None
        for name in names:
            if Path(name).name != name:
                raise CheckpointError(f"{index}: shard name {name!r} leads out of the folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: shard {name} is missing ({len(names)} are listed in {_INDEX})")
        return [folder / name for name in names]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    raise CheckpointError(f"{folder}: no weights there, neither {_SINGLE} nor {_INDEX}")


def find_pickle(folder: Path) -> Path | None:
    """The pickled weights of a folder that has no safetensors, if any."""
    if (folder / _INDEX).is_file() or (folder / _SINGLE).is_file():
        return None
    return next((folder / name for name in _PICKLES if (folder / name).is_file()), None)


def list_tensors(folder: Path, layout: Layout | None = None) -> dict[str, Entry]:
    """Every tensor of the folder's safetensors files by its published name.

    layout: None takes it from each file's metadata. Raises UnknownLayoutError when that says nothing, CheckpointError
    when a tensor is there twice, or when the index and the shards disagree.
    """
    shards = find_shards(folder)
    entries: dict[str, Entry] = {}
    for path in shards:
        with SafetensorsFile(path) as file:
            found = layout or _layout(file.metadata, path)
            for stored_name, tensor in file.tensors.items():
                name = canonical_name(stored_name)
                if _DERIVED.search(name):
                    continue
                if name in entries:
                    raise CheckpointError(f"{path}: {name} is also in {entries[name].path.name}")
                entries[name] = Entry(path, stored_name, tensor.dtype, tensor.shape, found)
    _check_index(folder, entries)
    return entries


def _layout(metadata: dict[str, str], path: Path) -> Layout:
    written_by = metadata.get("format")
    if written_by not in LAYOUTS:
        raise UnknownLayoutError(
            f"{path}: its metadata does not say which framework wrote it (format is {written_by!r}), so the layout of "
            "its matrices is unknown"
        )
    return LAYOUTS[written_by]


def _check_index(folder: Path, entries: dict[str, Entry]) -> None:
    index = folder / _INDEX
    if not index.is_file():
        return
    for stored_name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        entry = entries.get(canonical_name(stored_name))
        if entry is None and _DERIVED.search(stored_name):
            continue
        if entry is None or entry.path.name != shard:
            raise CheckpointError(f"{folder}: {_INDEX} says {stored_name} is in {shard}, but it is not")
