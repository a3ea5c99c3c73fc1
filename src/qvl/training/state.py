"""The state of the optimiser as a safetensors file, under the names that parameters have in the checkpoint.

Paddle keys it by names it generates, which change with the order in which layers are made, and saves it as a pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from qvl.errors import CheckpointError
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, SafetensorsWriter
from qvl.training.holders import ALONE, Holders

# What AdamW keeps of a parameter: the end of Paddle's key, and ours.
_KINDS = {
    "_moment1_0": "exp_avg",
    "_moment2_0": "exp_avg_sq",
    "_beta1_pow_acc_0": "beta1_power",
    "_beta2_pow_acc_0": "beta2_power",
}
_MASTER = "master_weights"
_OURS = "master_weight"
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", _OURS)  # the powers of the betas are single numbers


def save_optimizer(
    path: Path, optimizer: Any, parameters: Mapping[str, paddle.Tensor], holders: Holders = ALONE
) -> None:
    """Write the state of every learning parameter, one tensor in memory at a time.

    optimizer: Paddle's AdamW. parameters: by their name in the checkpoint. holders: when several processes share the
    state all of them call this together, and rank 0 writes. The file is the same however many there are.
    """
    state = optimizer.state_dict()
    shapes = {
        f"{name}:{kind}": holders.whole_shape(name, parameter.shape) if kind in _LIKE_PARAMETER else (1,)
        for name, parameter in parameters.items()
        for kind in (*_KINDS.values(), *([_OURS] if parameter.dtype != paddle.float32 else ()))
    }

    def tensors() -> Iterator[npt.NDArray[Any]]:
        for key in shapes:
            name, _, kind = key.rpartition(":")
            if holders.rank and not holders.asks(name):
                continue
            held = _held(state, parameters[name].name, kind) if holders.has(name) else None
            shape = parameters[name].shape if kind in _LIKE_PARAMETER else [1]
            tensor = holders.bring(name, held, paddle.empty(shape, "float32") if held is None else held)
            if tensor is not None:
                yield tensor.numpy()

    if holders.rank:
        for _ in tensors():
            pass
        return
    with SafetensorsWriter(path, {key: ("F32", shape) for key, shape in shapes.items()}, {"format": "np"}) as writer:
        for tensor in tensors():
            writer.write(tensor)


def _held(state: Mapping[str, Any], parameter: str, kind: str) -> paddle.Tensor:
    """A part of the state of a parameter, as float32, under the name that Paddle has for it."""
    if kind == _OURS:
        return state[_MASTER][parameter].astype("float32")
    suffix = next(suffix for suffix, ours in _KINDS.items() if ours == kind)
    return state[parameter + suffix].astype("float32")


def load_optimizer(
    path: Path, optimizer: Any, parameters: Mapping[str, paddle.Tensor], holders: Holders = ALONE
) -> None:
    """Give an optimiser that has not stepped yet the state of one that has, as much of it as this process holds.

    Raises CheckpointError when the file is of other parameters.
    """
    state: dict[str, Any] = {_MASTER: {}}
    seen = set()
    suffixes = {kind: suffix for suffix, kind in _KINDS.items()}
    with SafetensorsFile(path) as file:
        for key, stored in file.tensors.items():
            name, _, kind = key.rpartition(":")
            parameter = parameters.get(name)
            if parameter is None or (kind not in suffixes and kind != _OURS):
                raise CheckpointError(f"{path}: holds {key}, which is not learnt in this run")
            seen.add(name)
            if not holders.has(name):
                continue
            rows = [block.copy() for block in file.rows(key, 1 << 16)]
            numbers = np.concatenate(rows).reshape(stored.shape).astype(STORED_DTYPES["F32"])
            if kind in _LIKE_PARAMETER:
                numbers = np.ascontiguousarray(numbers[holders.stretch(name)])
            values = paddle.to_tensor(numbers)
            if kind == _OURS:
                values.name = parameter.name + "_fp32_master_0"
                state[_MASTER][parameter.name] = values
            else:
                state[parameter.name + suffixes[kind]] = values
    missing = sorted(parameters.keys() - seen)
    if missing:
        raise CheckpointError(f"{path}: has no state of {missing[0]}, which this run learns")
    if not state[_MASTER]:
        del state[_MASTER]
    optimizer.set_state_dict(state)
