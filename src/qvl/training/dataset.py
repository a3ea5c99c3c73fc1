"""A data set: the samples of a file, or a mix of several files with repeats, fractions and weights.

A mix is two arrays, which file and which record; nothing of the samples is held beyond what `sources` holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qvl.errors import UsageError, suggest
from qvl.training.formats import FORMATS, DataError, Sample, parse_sample
from qvl.training.sources import Source, open_source_file

# "data_augment" and "length" are in meta files of PaddleMIX; the first has to be off, the second only informs.
_KEYS = ("annotation", "root", "repeat_time", "weight", "data_augment", "length")


@dataclass(frozen=True)
class _Part:
    """One file of a mix. root: where its media start; repeat: how often it is passed through, fractions too."""

    name: str
    source: Source
    root: Path
    repeat: float
    weight: float | None = None


class DataSet:
    """Samples by number, set after set and pass after pass: whoever trains shuffles.

    names, counts: of each set, and how many samples of the mix are its.
    """

    def __init__(self, parts: Sequence[_Part], seed: int) -> None:
        self._parts = tuple(parts)
        self._seed = seed
        chosen = [_choose(len(part.source), part.repeat, f"{seed}/{part.name}") for part in parts]
        self.names = tuple(part.name for part in parts)
        self.counts = tuple(len(indices) for indices in chosen)
        self._set = np.repeat(np.arange(len(parts), dtype=np.int32), self.counts)
        self._index = np.concatenate(chosen)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> Sample:
        """Read and parse a sample. Raises DataError, which names file, index and reason, and IndexError."""
        number, index = self.key(i)
        part = self._parts[number]
        messages = parse_sample(part.source.record(index), part.root, part.source.where(index))
        return Sample(messages, part.source.name, index)

    def key(self, i: int) -> tuple[int, int]:
        """(set, index in its file): equal for the repeats of one sample."""
        return int(self._set[i]), int(self._index[i])

    def where(self, i: int) -> str:
        """How errors name a sample."""
        part, index = self.key(i)
        return self._parts[part].source.where(index)

    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of the annotation files' bytes and of the mix; pictures and folders are not in it."""
        sha = hashlib.sha256()
        for part, count in zip(self._parts, self.counts, strict=True):
            sha.update(json.dumps([part.name, part.source.digest, count]).encode())
        sha.update(self._index.astype("<i8").tobytes())
        return sha.hexdigest()


def load_dataset(path: str | Path, *, seed: int = 0) -> DataSet:
    """Open a JSON list or JSON lines of samples, or a meta file that mixes such files.

    A meta file is `{"name": {"annotation": file, "root": folder, "repeat_time": number or "weight": number}}`, with
    paths relative to itself; media are relative to `root`, or else to the folder of their annotation file.

    repeat_time: 2 takes every sample twice, 0.5 a half chosen by `seed`, 2.5 both; a fraction is rounded to whole
    samples, at least one. weight: the largest set is passed through once, and any other gives its weight / that set's
    weight times as many samples as that one, by repeats and fractions. All sets of a file have a weight or none has.
    Raises UsageError (a file that is not there, a meta file that is wrong) and DataError (empty, not JSON).
    """
    path = Path(path)
    opened = open_source_file(path)
    if not isinstance(opened, dict):
        return DataSet([_Part(path.stem, opened, path.parent, 1.0)], seed)
    if not opened:
        raise DataError(f"{path}: is an empty object")
    if not all(isinstance(entry, Mapping) and "annotation" in entry for entry in opened.values()):
        raise DataError(f"{path}: neither a list of samples ({'; '.join(FORMATS)}) nor a meta file of sets")
    parts = [_entry(name, entry, path) for name, entry in opened.items() if isinstance(entry, Mapping)]
    return DataSet(_weigh(parts, path), seed)


def _entry(name: str, entry: Mapping[str, object], meta: Path) -> _Part:
    where = f"{meta}: {name}"
    for key in entry:
        if key not in _KEYS:
            raise UsageError(f"{where}: unknown key {key!r}{suggest(key, _KEYS)}")
    for key in ("annotation", "root"):
        if key in entry and not isinstance(entry[key], str):
            raise UsageError(f"{where}: {key} has to be a path")
    if entry.get("data_augment"):
        raise UsageError(f"{where}: data_augment is not supported")
    repeat, weight = _positive(entry, "repeat_time", where), _positive(entry, "weight", where)
    if weight is not None and repeat not in (None, 1.0):
        raise UsageError(f"{where}: repeat_time and weight exclude each other")
    annotation = meta.parent / str(entry["annotation"])
    source = open_source_file(annotation)
    if isinstance(source, dict):
        raise DataError(f"{annotation}: a list of samples was expected, not an object")
    root = meta.parent / str(entry["root"]) if "root" in entry else annotation.parent
    return _Part(name, source, root, 1.0 if repeat is None else repeat, weight)


def _positive(entry: Mapping[str, object], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"{where}: {key} is {value!r}; expected a number above 0")
    return float(value)


def _weigh(parts: Sequence[_Part], meta: Path) -> Sequence[_Part]:
    """Weights to repeats, as `load_dataset` says."""
    if all(part.weight is None for part in parts):
        return parts
    for part in parts:
        if part.weight is None:
            raise UsageError(f"{meta}: {part.name}: has no weight, and others have; give all sets one, or none")
    largest = max(parts, key=lambda part: len(part.source))  # the first of equals
    per_weight = len(largest.source) / (largest.weight or 1.0)
    return [
        _Part(part.name, part.source, part.root, (part.weight or 1.0) * per_weight / len(part.source)) for part in parts
    ]


def _choose(count: int, repeat: float, seed: str) -> npt.NDArray[np.int64]:
    """The records that `repeat` passes give: whole passes in order, then a part of them chosen by the seed, in order.

    The seed is text with the set's name in it, so that one set of a mix does not change with the others.
    """
    passes = int(repeat)
    rest = round((repeat - passes) * count)
    if not passes:
        rest = max(rest, 1)
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
    part = np.sort(generator.permutation(count)[:rest]).astype(np.int64)
    return np.concatenate([np.tile(np.arange(count, dtype=np.int64), passes), part])
