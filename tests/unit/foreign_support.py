"""Tiny checkpoints as AutoAWQ and GPTQ's tools write them, and the same numbers in float32: written here, from scratch.

Nothing of qvl takes part in the packing: the places of all bits are spelled out below, one number at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.model.config import ModelConfig
from qvl.model.foreign import is_projection
from qvl.model.packing import Source
from qvl.model.quantization import chosen_quantization, matrix_shapes
from qvl.model.safetensors_io import SafetensorsFile, SafetensorsWriter
from qvl.ops.packing import unpack

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

# Wide enough for several groups of 128, and few enough layers to be quick.
WIDE = replace(
    TINY,
    hidden_size=256,
    num_attention_heads=16,
    num_key_value_heads=4,
    intermediate_size=384,
    num_hidden_layers=2,
    torch_dtype="float16",
    vision_config=replace(TINY.vision_config, hidden_size=256),
)
_STORED = {"float16": "F16", "float32": "F32", "int32": "I32", "uint16": "BF16"}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output of eight whose code is in bits 0-3, 4-7, ... 28-31 of a word


@dataclass(frozen=True)
class Form:
    """A layout. group -1: all inputs. order: whether g_idx is there, and as what. config: more keys of the section."""

    method: str
    bits: int = 4
    group: int = 128
    symmetric: bool = False
    version: int = 1
    order: str = "plain"
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> dict[str, Any]:
        if self.method == "awq":
            said = {"version": "gemm", "zero_point": True, "modules_to_not_convert": ["visual"]}
        else:
            said = {"desc_act": self.order == "permuted", "sym": self.symmetric, "true_sequential": True}
            said |= {"damp_percent": 0.1, "dataset": None, "modules_in_block_to_quantize": None}
            said |= {"checkpoint_format": "gptq_v2"} if self.version == 2 else {}
        return {"quant_method": self.method, "bits": self.bits, "group_size": self.group, **said, **self.config}


FORMS = {
    "awq": Form("awq"),
    "awq-64": Form("awq", group=64),
    "awq-whole": Form("awq", group=-1),
    "gptq-int4": Form("gptq", symmetric=True),
    "gptq-int4-plain-zeros": Form("gptq", version=2),
    "gptq-int4-asymmetric": Form("gptq", group=32),
    "gptq-int4-whole": Form("gptq", symmetric=True, group=-1, order="absent"),
    "gptq-int4-large-groups": Form("gptq", group=192),
    "gptq-int8": Form("gptq", 8, symmetric=True),
    "gptq-int8-64": Form("gptq", 8, symmetric=True, group=64, version=2, order="absent"),
    "gptq-int8-whole": Form("gptq", 8, symmetric=True, group=-1),
}
Written = Callable[[str], tuple[Path, Path]]


def write_foreign(folder: Path, form: Form, config: ModelConfig = WIDE, tokenizer: bool = False) -> tuple[Path, Path]:
    """A checkpoint in that form, and one with its numbers in float32; both folders are under `folder`."""
    plain, packed = folder / "plain", folder / "packed"
    write_checkpoint(plain, config, tokenizer=tokenizer)
    with SafetensorsFile(plain / "model.safetensors") as file:
        tensors = {name: _read(file, name) for name in file.tensors}
    foreign: Tensors = {}
    for name, values in tensors.items():
        if name.startswith("model.layers.") and name.endswith("_proj.weight"):
            own, tensors[name] = _quantised(values, form)
            foreign |= {name.replace("weight", key): array for key, array in own.items()}
        else:
            foreign[name] = values.astype(np.float16)
            tensors[name] = foreign[name].astype(np.float32)
    write_tensors(plain, tensors)
    shutil.copytree(plain, packed)
    write_tensors(packed, foreign)
    edit_config(packed, lambda data: data.update(quantization_config=form.section, torch_dtype="float16"))
    return packed, plain


def read_tensors(folder: Path) -> Tensors:
    with SafetensorsFile(folder / "model.safetensors") as file:
        return {name: _read(file, name) for name in file.tensors}


def write_tensors(folder: Path, tensors: Tensors) -> None:
    declared = {name: (_STORED[str(array.dtype)], array.shape) for name, array in tensors.items()}
    with SafetensorsWriter(folder / "model.safetensors", declared, {"format": "pt"}) as writer:
        for array in tensors.values():
            writer.write(array)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def _read(file: SafetensorsFile, name: str) -> Array:
    shape = file.tensors[name].shape
    return next(file.rows(name, max(1, shape[0]))).reshape(shape).copy()


def _quantised(weight: Array, form: Form) -> tuple[Tensors, Array]:
    """The tensors of one matrix [n, k], and what they stand for."""
    n, k = weight.shape
    group = k if form.group == -1 else form.group
    groups = math.ceil(k / group)
    order = np.arange(k, dtype=np.int32) // group
    if form.order == "permuted":
        order = np.random.default_rng(k).permutation(order)
    weight = weight.copy()
    weight[::5] = np.abs(weight[::5])  # zero points of 0, from which the first format borrows
    codes, zeros = np.zeros((n, k), np.uint32), np.zeros((n, groups), np.uint32)
    scales, stands = np.zeros((n, groups), np.float16), np.zeros((n, k), np.float32)
    top = 2**form.bits - 1
    for g in range(groups):
        inputs = order == g
        part = weight[:, inputs]
        if form.symmetric:
            zero = np.full(n, 2 ** (form.bits - 1))
            scale = (np.abs(part).max(axis=1) / (zero - 0.5)).astype(np.float16)  # reaches the lowest code
        else:
            low, high = np.minimum(part.min(axis=1), 0), part.max(axis=1)
            scale = ((high - low) / top).astype(np.float16)
            zero = np.clip(np.rint(-low / scale.astype(np.float32)), 0, top)
        wide = scale.astype(np.float32)[:, None]
        code = np.clip(np.rint(part / wide) + zero[:, None], 0, top)
        codes[:, inputs], zeros[:, g], scales[:, g] = code, zero, scale
        stands[:, inputs] = ((code - zero[:, None]) * wide.astype(np.float64)).astype(np.float32)
    tensors = {"scales": np.ascontiguousarray(scales.T)}
    if form.method == "awq":
        tensors |= {"qweight": awq_words(codes), "qzeros": awq_words(zeros)}
        return tensors, stands
    tensors |= {"qweight": gptq_weights(codes, form.bits), "qzeros": gptq_zeros(zeros, form.bits, form.version)}
    if form.order != "absent":
        tensors["g_idx"] = order
    return tensors, stands


def awq_words(numbers: Array) -> Array:
    """[outputs, columns] -> int32 [columns, outputs / 8]."""
    outputs, columns = numbers.shape
    words = np.zeros((columns, outputs // 8), np.uint32)
    for word in range(outputs // 8):
        for place, output in enumerate(AWQ_ORDER):
            words[:, word] |= numbers[8 * word + output] << np.uint32(4 * place)
    return words.view(np.int32)


def gptq_weights(codes: Array, bits: int) -> Array:
    """[outputs, inputs] -> int32 [inputs / (32 / bits), outputs]."""
    outputs, inputs = codes.shape
    words = np.zeros((inputs * bits // 32, outputs), np.uint32)
    for i in range(inputs):
        words[i * bits // 32] |= codes[:, i] << np.uint32(i * bits % 32)
    return words.view(np.int32)


def gptq_zeros(zeros: Array, bits: int, version: int) -> Array:
    """[outputs, groups] -> int32 [groups, outputs / (32 / bits)]; version 1: one less, word by word."""
    outputs, groups = zeros.shape
    words = np.zeros((groups, outputs * bits // 32), np.uint32)
    for o in range(outputs):
        words[:, o * bits // 32] |= zeros[o] << np.uint32(o * bits % 32)
    if version == 1:
        one_in_each = sum(1 << place for place in range(0, 32, bits))
        words -= np.uint32(one_in_each)
    return words.view(np.int32)


def assert_same_numbers(packed: Path, plain: Path) -> None:
    """To the last bit: what the packed matrices stand for is what the folder in float32 has."""
    config, wanted = ModelConfig.from_folder(packed), read_tensors(plain)
    chosen = chosen_quantization("auto", packed, "cpu", "float32")
    assert chosen is not None
    with Source(packed, config) as source:
        names = [name for name in matrix_shapes(config) if is_projection(name)]
        assert len(names) == 7 * config.num_hidden_layers
        for name in names:
            got = unpack(source.matrix(name, chosen.language.packing()))
            np.testing.assert_array_equal(got, wanted[name], err_msg=name)
        for name in wanted.keys() - set(names):
            np.testing.assert_array_equal(source.floats(name), wanted[name], err_msg=name)
