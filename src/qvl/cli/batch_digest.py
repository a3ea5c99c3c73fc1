"""A digest of everything but the records that an answer depends on: the model, its limits, how answers are drawn."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.batch_input import digest
from qvl.errors import CheckpointError

if TYPE_CHECKING:
    from qvl.runtime.engine import Engine

# Keys of a profile that change what the model sees; how answers are drawn is in the resolved sampling.
_SEEN = ("min_pixels", "max_pixels", "video", "raw_pixels", "template", "add_vision_id", "system", "max_context")
_ABOUT_SPEED = ("speculate",)  # settings of Sampling that change no token
_ENDINGS = (".json", ".safetensors", ".pdparams", ".txt", ".model")
_WHOLE_BYTES = 1 << 24
_BLOCKS, _BLOCK_BYTES = 64, 4096


def run_digests(engine: Engine, sampling: Any, flags: object) -> tuple[str, ...]:
    """The digest, and behind it what the same run was known by before: answers under either of them hold.

    sampling: as it is for a record that asks for nothing. flags: all else that counts, as JSON can hold it.
    Says nothing of the device and of batch sizes: an answer is that of the model, whoever works it out.
    Raises CheckpointError.
    """
    return _run_digest(engine, sampling, flags, hidden=False), _run_digest(engine, sampling, flags, hidden=True)


def _run_digest(engine: Engine, sampling: Any, flags: object, hidden: bool) -> str:
    profile = dataclasses.asdict(engine.profile)
    drawn = dataclasses.asdict(sampling)
    return digest(
        {
            "model": folder_digest(engine.folder, hidden),
            "adapters": [[folder_digest(request.folder, hidden), request.scale] for request, _ in engine.adapters],
            "dtype": engine.placement.dtype,
            "quantize": None if engine.quantization is None else engine.quantization.to_dict(),
            "cache_dtype": engine.cache_dtype,
            "profile": {name: profile[name] for name in _SEEN},
            "sampling": {name: value for name, value in drawn.items() if name not in _ABOUT_SPEED},
            "flags": flags,
        }
    )


def folder_digest(folder: Path, hidden: bool = False) -> str:
    """Of the files in a checkpoint's or adapter's folder: small ones whole, of large ones 64 places.

    That shows any training, in a moment even for the largest model. The folder's own name does not count. hidden: count
    names that begin with a dot, as earlier versions did; among them is a list of the files with the time when they were
    last verified.
    Raises CheckpointError.
    """
    sha = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file()):
            if path.name.startswith(".") and not hidden:
                continue
            size = path.stat().st_size
            sha.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                if size <= _WHOLE_BYTES:
                    sha.update(file.read())
                    continue
                for block in range(_BLOCKS):
                    file.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                    sha.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error})") from None
    return sha.hexdigest()[:16]
