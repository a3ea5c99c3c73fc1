"""Checkpoints whose layers AWQ or GPTQ has quantised: what `config.json` says of them, and which tensors they have.

Only the language model's projections are quantised there; all else is as in any other checkpoint. No Paddle, no NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qvl.errors import CheckpointError

Method = Literal["awq", "gptq"]
METHODS: tuple[Method, ...] = get_args(Method)
KEY = "quantization_config"
# The hub ids of published checkpoints end so.
PUBLISHED_ENDS: dict[str, tuple[Method, int]] = {
    "-AWQ": ("awq", 4),
    "-GPTQ-Int4": ("gptq", 4),
    "-GPTQ-Int8": ("gptq", 8),
}
_WORD = 32  # bits of the integers that codes are packed in
# How GPTQ's tools call their layouts: the first has zero points less one, the second as they are.
_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class Foreign:
    """How the projections are stored.

    group: inputs that share a scale and a zero point, 0 for all of them. symmetric: the zero point is always half of
    the codes. less_one: zero points are stored less one.
    """

    method: Method
    bits: int
    group: int
    symmetric: bool
    less_one: bool = False

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: str) -> Foreign:
        """What `quantization_config` says. Raises CheckpointError for what qvl does not read, with the key."""

        def refuse(key: str, readable: str) -> CheckpointError:
            return CheckpointError(f"{where}: {KEY} has {key} {data.get(key)!r}; of {method} qvl reads {readable}")

        method = next(known for known in METHODS if known == data["quant_method"])
        bits, group = data.get("bits", 4), data.get("group_size", 128)
        if bits not in ((4,) if method == "awq" else (4, 8)):
            raise refuse("bits", "4" if method == "awq" else "4 and 8")
        if isinstance(group, bool) or not isinstance(group, int) or (group != -1 and (group <= 0 or group % 32)):
            raise refuse("group_size", "multiples of 32, and -1 for one group")
        _check_parts(data, where)
        if method == "awq":
            if str(data.get("version", "gemm")).lower() != "gemm":
                raise refuse("version", "'gemm'")
            if data.get("zero_point", True) is not True:
                raise refuse("zero_point", "true")
            return Foreign("awq", 4, max(group, 0), False)
        written = data.get("checkpoint_format") or "gptq"
        if written not in _FORMATS or data.get("is_marlin_format"):
            raise refuse("checkpoint_format" if written not in _FORMATS else "is_marlin_format", "'gptq' and 'gptq_v2'")
        symmetric = data.get("sym", True)
        if not isinstance(symmetric, bool) or (bits == 8 and not symmetric):
            raise refuse("sym", "symmetric weights of 8 bits, and any of 4")
        return Foreign("gptq", int(bits), max(group, 0), symmetric, written == "gptq")

    @property
    def label(self) -> str:
        return self.method.upper()

    @property
    def kind(self) -> Literal["int4", "int8"]:
        return "int4" if self.bits == 4 else "int8"

    @property
    def packed_group(self) -> int:
        """Inputs of a group in qvl's layout, where a larger group becomes several with the same numbers."""
        if self.group == 0:
            return 128 if self.bits == 4 else 0
        return next(group for group in (128, 64, 32) if self.group % group == 0)

    def groups(self, k: int) -> int:
        """How many there are of k inputs."""
        return -(-k // self.group) if self.group else 1

    def shapes(self, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors that a matrix [n, k] has; codes and zero points are int32. GPTQ's g_idx may be missing."""
        together, groups = _WORD // self.bits, self.groups(k)
        words = (k, n // together) if self.method == "awq" else (k // together, n)
        return {"qweight": words, "qzeros": (groups, n // together), "scales": (groups, n)}

    def tensor_names(self, parameters: Iterable[str]) -> list[str]:
        """The tensors that must be there for those parameters."""
        names: list[str] = []
        for name in parameters:
            names += [f"{module_of(name)}.{key}" for key in self.shapes(0, 0)] if is_projection(name) else [name]
        return names


def _check_parts(data: Mapping[str, Any], where: str) -> None:
    """Every projection has to be quantised, all in one way, and nothing else."""
    if data.get("lm_head"):
        raise CheckpointError(f"{where}: {KEY} says that the head is quantised too, which qvl does not read")
    kept = data.get("modules_to_not_convert") or ()
    odd = [str(part) for part in kept if "visual" not in str(part) and "lm_head" not in str(part)]
    if odd:
        raise CheckpointError(f"{where}: {KEY} keeps {odd[0]} unquantised; qvl reads the tower and the head so")
    for key in ("dynamic", "modules_in_block_to_quantize"):
        if data.get(key):
            raise CheckpointError(f"{where}: {KEY} treats layers differently ({key}), which qvl does not read")


def is_projection(name: str) -> bool:
    """Whether a parameter is among those that are quantised."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def module_of(name: str) -> str:
    return name.removesuffix(".weight")


def quantization_section(data: Any) -> Mapping[str, Any] | None:
    """What a parsed `config.json` says of quantised weights, if anything that can be read."""
    for holder in (data, data.get("text_config") if isinstance(data, Mapping) else None):
        section = holder.get(KEY) if isinstance(holder, Mapping) else None
        if isinstance(section, Mapping):
            return section
    return None


def read_section(folder: Path) -> Mapping[str, Any] | None:
    """The same of a folder. What is wrong with its `config.json` is said by whoever reads the configuration."""
    try:
        return quantization_section(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def foreign_of(folder: Path) -> Foreign | None:
    """How AWQ or GPTQ has quantised a folder; None where neither has. Raises CheckpointError."""
    section = read_section(folder)
    if section is None or section.get("quant_method") not in METHODS:
        return None
    return Foreign.from_dict(section, str(folder / "config.json"))


def published_foreign(model: str) -> Foreign | None:
    """How a checkpoint of the Qwen organisation is quantised, by its hub id."""
    if not model.startswith("Qwen/Qwen2-VL-"):
        return None
    for end, (method, bits) in PUBLISHED_ENDS.items():
        if model.endswith(end):
            return Foreign(method, bits, 128, method == "gptq", method == "gptq")
    return None
