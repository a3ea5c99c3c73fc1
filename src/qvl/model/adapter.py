"""LoRA adapters in the files of Hugging Face PEFT: reading, checking, writing, and adding one to a model that runs.

Reading and writing need NumPy only; what a merge needs of an adapter is had without Paddle. Layout of the files:
https://github.com/huggingface/peft (`LoraConfig`, `save_pretrained`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qvl.errors import CheckpointError, UsageError
from qvl.model.adapter_config import CONFIG_FILE, AdapterConfig, AdapterRequest
from qvl.model.checkpoint import canonical_name
from qvl.model.checkpoint_writer import write_json, write_weights
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_to_float32
from qvl.model.unfinished import unfinished

if TYPE_CHECKING:
    import paddle
    from paddle import nn

    from qvl.model.config import ModelConfig
    from qvl.model.part import Cut

Array = npt.NDArray[np.float32]
Factors = tuple[Array, Array]  # A [r, in] and B [out, r]

WEIGHTS_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. Its factors stay in the file until they are asked for.

    modules: published name of each adapted module -> its name in the file, which patterns are matched with.
    """

    folder: Path
    config: AdapterConfig
    modules: Mapping[str, str]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @staticmethod
    def open(folder: str | Path) -> Adapter:
        """Read the configuration and the list of tensors. Raises CheckpointError naming file, tensor or key."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such adapter folder")
        config = AdapterConfig.from_folder(folder)
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            if (folder / PICKLE_FILE).is_file():
                raise CheckpointError(
                    f"{folder / PICKLE_FILE}: a pickle can run any code when read; save the adapter as safetensors"
                )
            raise CheckpointError(f"{folder}: {WEIGHTS_FILE} is missing")
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        with SafetensorsFile(path) as file:
            for name, tensor in file.tensors.items():
                match = _TENSOR.match(name)
                if match is None or tensor.dtype not in ("F32", "F16", "BF16", "F64"):
                    raise CheckpointError(f"{path}: tensor {name} ({tensor.dtype}) is not a factor of a linear layer")
                found.setdefault(match["module"], {})[match["factor"]] = tensor.shape
        if not found:
            raise CheckpointError(f"{path}: no tensors in it")
        modules = {canonical_name(f"{stored}.")[:-1]: stored for stored in found}
        for stored, factors in found.items():
            _check_factors(path, stored, factors, config.rank_of(stored))
        if len(modules) != len(found):
            raise CheckpointError(f"{path}: a module is there under two names")
        shapes = {name: (found[stored]["A"], found[stored]["B"]) for name, stored in modules.items()}
        return Adapter(folder, config, modules, shapes)

    def scale(self, module: str) -> float:
        """What B A of a module, by its published name, is multiplied by."""
        return self.config.scale_of(self.modules[module])

    def factors(self, module: str) -> Factors:
        """A [r, in] and B [out, r] of a module, by its published name, in float32."""
        stored = self.modules[module]
        with SafetensorsFile(self.folder / WEIGHTS_FILE) as file:
            a, b = (_whole(file, f"{_PREFIX}{stored}.lora_{factor}.weight") for factor in "AB")
        return a, b

    def check(self, linears: Mapping[str, tuple[int, int]]) -> None:
        """Compare with a model: published name -> (out, in) of each linear layer that may be adapted.

        Raises CheckpointError for a module that the model has not, another shape, and a target without its factors.
        """
        path = self.folder / WEIGHTS_FILE
        for name, (a, b) in self.shapes.items():
            if name not in linears:
                why = " (its head is the embedding)" if name == "lm_head" else ""
                raise CheckpointError(f"{path}: the model has no linear layer {name}{why}")
            if (b[0], a[1]) != linears[name]:
                raise CheckpointError(
                    f"{path}: {name} is for a layer of {a[1]} to {b[0]}, the model's is {linears[name][1]} to "
                    f"{linears[name][0]}; this adapter belongs to another base"
                )
        if self.config.is_selective:
            return
        newer = any(name != stored for name, stored in self.modules.items())
        for name in linears:
            spelled = _newer_name(name) if newer else name
            if name not in self.modules and self.config.targets(spelled):
                raise CheckpointError(f"{path}: lora_A and lora_B of {spelled} are missing; {CONFIG_FILE} targets it")


def _newer_name(name: str) -> str:
    """The inverse of `canonical_name`."""
    for start, longer in (("model.", "model.language_model."), ("visual.", "model.visual.")):
        if name.startswith(start):
            return longer + name.removeprefix(start)
    return name


def _check_factors(path: Path, module: str, factors: Mapping[str, tuple[int, ...]], rank: int) -> None:
    for factor, axis in (("A", 0), ("B", 1)):
        name = f"{_PREFIX}{module}.lora_{factor}.weight"
        if factor not in factors:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        shape = factors[factor]
        if len(shape) != 2 or shape[axis] != rank:
            raise CheckpointError(f"{path}: {name} has shape {list(shape)}, which is not of rank {rank}")


def _whole(file: SafetensorsFile, name: str) -> Array:
    tensor = file.tensors[name]
    block = next(file.rows(name, tensor.shape[0]))
    return bfloat16_to_float32(block) if tensor.dtype == "BF16" else block.astype(np.float32)


def linear_shapes(model: nn.Layer) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of a model that an adapter may be for, which a convolution is not.

    Of the whole layer, also where the model is a part of one.
    """
    places = _places(model)
    cuts = _cuts(model, places)
    return {name: _whole_shape(place.shape, cuts[name]) for name, place in places.items()}


@dataclass(frozen=True)
class _Place:
    """Where a linear layer is: the layer that runs it, and its outputs among those of the layer."""

    layer: nn.Layer
    shape: tuple[int, int]
    dtype: paddle.dtype
    start: int = 0


def _places(model: nn.Layer) -> dict[str, _Place]:
    """Every linear layer that an adapter may be for, by its published name, in a quantised model too."""
    from paddle import nn

    from qvl.model.packed import Projection

    found = {}
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Linear) and "patch_embed" not in name:
            shape = (int(layer.weight.shape[1]), int(layer.weight.shape[0]))
            found[name] = _Place(layer, shape, layer.weight.dtype)
        if isinstance(layer, Projection):
            start = 0
            for part, width in zip(layer.names, layer.widths, strict=True):
                found[part] = _Place(layer, (width, layer.inputs), layer.dtype, start)
                start += width
    return found


def _cuts(model: nn.Layer, names: Iterable[str]) -> dict[str, Cut | None]:
    """The stretch of each layer's weight that a part of a split model holds; None where the model is whole."""
    from qvl.model.qwen2_vl import Qwen2VL

    if not isinstance(model, Qwen2VL):
        return dict.fromkeys(names)
    return {name: model.part.cut(f"{name}.weight", model.config) for name in names}


def _whole_shape(shape: tuple[int, int], cut: Cut | None) -> tuple[int, int]:
    """(out, in) of a layer of which a part has `shape`."""
    if cut is None:
        return shape
    return (cut.whole, shape[1]) if cut.axis == 1 else (shape[0], cut.whole)


def open_adapters(requests: Sequence[str], config: ModelConfig) -> tuple[tuple[AdapterRequest, Adapter], ...]:
    """Open adapters asked for as "DIR", "name=DIR" or "name=DIR:scale", and compare them with the model's shape.

    Raises UsageError for the request, CheckpointError for what is in the folders.
    """
    from qvl.model.weights import empty_model

    parsed = [AdapterRequest.parse(text) for text in requests]
    names = [request.name for request in parsed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two adapters are called {name!r}; give each a name, as in name=DIR")
    opened = tuple((request, Adapter.open(request.folder)) for request in parsed)
    if opened:
        shapes = linear_shapes(empty_model(config, "float32"))
        for _, adapter in opened:
            adapter.check(shapes)
    return opened


def apply_adapter(model: nn.Layer, adapter: Adapter, scale: float = 1.0) -> Callable[[], None]:
    """Let a model with its weights add `scale` times what the adapter says, in the dtype that each layer computes in.

    A part of a split model takes its stretch of the factors: what it adds to a sum over the parts is its part of that.
    The layers and their parameters, quantised ones too, stay as they are: a hook adds to what a layer returns, so
    several adapters sum.
    Returns what takes it off again. Raises CheckpointError when the adapter is for another model.
    """
    import paddle

    places = _places(model)
    cuts = _cuts(model, places)
    adapter.check(linear_shapes(model))
    hooks = []
    for name in adapter.modules:
        a, b = adapter.factors(name)
        if (cut := cuts[name]) is not None:
            held = slice(cut.start, cut.stop)
            a, b = (a, b[held]) if cut.axis == 1 else (a[:, held], b)
        place = places[name]
        dtype = place.dtype
        # The scale goes into the smaller work, once, and not into every step.
        down = paddle.to_tensor(np.ascontiguousarray(a.T)).astype(dtype)
        up = paddle.to_tensor(np.ascontiguousarray(b.T) * np.float32(scale * adapter.scale(name))).astype(dtype)
        hooks.append(place.layer.register_forward_post_hook(_adding(down, up, place.start)))

    def take_off() -> None:
        for hook in hooks:
            hook.remove()

    return take_off


def _adding(down: paddle.Tensor, up: paddle.Tensor, start: int) -> Callable[..., paddle.Tensor]:
    """A hook that adds x down up to what a layer makes of x, from output `start` on; down: [in, r], up: [r, out]."""
    import paddle

    def add(_layer: nn.Layer, inputs: tuple[paddle.Tensor, ...], output: paddle.Tensor) -> paddle.Tensor:
        added, width = inputs[0].matmul(down).matmul(up), output.shape[-1]
        if added.shape[-1] == width:
            return output + added
        end = start + added.shape[-1]
        parts = (output[:, :start], output[:, start:end] + added, output[:, end:])
        return paddle.concat([part for part in parts if part.shape[-1]], axis=-1)

    return add


def write_adapter(folder: Path, config: AdapterConfig, factors: Mapping[str, Factors]) -> None:
    """Write an adapter folder in float32, `factors` by published module name. It appears when it is complete.

    Raises CheckpointError when the folder is already there.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: is already there; choose another folder or remove it first")
    tensors = {
        f"{_PREFIX}{module}.lora_{factor}.weight": values
        for module, pair in factors.items()
        for factor, values in zip("AB", pair, strict=True)
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as partial:
        write_json(partial / CONFIG_FILE, config.to_dict())
        shapes = {name: values.shape for name, values in tensors.items()}
        write_weights(partial, shapes, "float32", lambda name: [tensors[name]], shard_bytes=sys.maxsize)
        (partial / "model.safetensors").rename(partial / WEIGHTS_FILE)
        partial.chmod(0o755)
        partial.rename(folder)
