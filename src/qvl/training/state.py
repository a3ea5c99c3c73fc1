"""The state of the optimiser as a safetensors file, under the names that parameters have in the checkpoint.

Paddle keys it by names it generates, which change with the order in which layers are made, and saves it as a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from qvl.errors import CheckpointError
from qvl.model.safetensors_io import STORED_DTYPES, SafetensorsFile, SafetensorsWriter

# What AdamW keeps of a parameter: the end of Paddle's key, and ours.
_KINDS = {
    "_moment1_0": "exp_avg",
    "_moment2_0": "exp_avg_sq",
    "_beta1_pow_acc_0": "beta1_power",
    "_beta2_pow_acc_0": "beta2_power",
}
_MASTER = "master_weights"
_OURS = "master_weight"


def save_optimizer(path: Path, optimizer: Any, parameters: Mapping[str, paddle.Tensor]) -> None:
    """Write the state of every learning parameter. parameters: by their name in the checkpoint."""
    state = optimizer.state_dict()
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, parameter in parameters.items():
        for suffix, kind in _KINDS.items():
            if parameter.name + suffix in state:
                tensors[f"{name}:{kind}"] = state[parameter.name + suffix].astype("float32").numpy()
        master = state.get(_MASTER, {}).get(parameter.name)
        if master is not None:
            tensors[f"{name}:{_OURS}"] = master.astype("float32").numpy()
    shapes = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, shapes, {"format": "np"}) as writer:
        for tensor in tensors.values():
            writer.write(tensor)


def load_optimizer(path: Path, optimizer: Any, parameters: Mapping[str, paddle.Tensor]) -> None:
    """Give an optimiser that has not stepped yet the state of one that has.

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
            rows = [block.copy() for block in file.rows(key, 1 << 16)]
            values = paddle.to_tensor(np.concatenate(rows).reshape(stored.shape).astype(STORED_DTYPES["F32"]))
            if kind == _OURS:
                values.name = parameter.name + "_fp32_master_0"
                state[_MASTER][parameter.name] = values
            else:
                state[parameter.name + suffixes[kind]] = values
            seen.add(name)
    missing = sorted(parameters.keys() - seen)
    if missing:
        raise CheckpointError(f"{path}: has no state of {missing[0]}, which this run learns")
    if not state[_MASTER]:
        del state[_MASTER]
    optimizer.set_state_dict(state)
