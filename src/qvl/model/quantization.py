"""Which matrices of a model are quantised and to what, and what `config.json` says of it. No Paddle here.

Norms, biases and the embedding of patches, which together are a thousandth of a model, stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from qvl.errors import CheckpointError, DeviceError, UsageError
from qvl.model.checkpoint import LM_HEAD
from qvl.model.config import QUANT_METHOD, ModelConfig
from qvl.model.foreign import KEY, Foreign, foreign_of, read_section
from qvl.model.shapes import parameter_shapes

if TYPE_CHECKING:
    from qvl.ops.packing import Packing

Width = Literal["bf16", "int8", "int4"]
WIDTHS: tuple[Width, ...] = get_args(Width)
# Inputs of an int4 matrix that share a scale and a zero point. On Gaussian weights groups of 64 with a zero point are
# off by 8.8 % (rms), without by 9.0 %, on heavy-tailed ones (Student's t, 5 degrees) by 10.9 and 12.2 %.
DEFAULT_GROUP, DEFAULT_SYMMETRIC = 64, False

EMBEDDING = "model.embed_tokens.weight"
_VERSION = 1
_PARTS = ("language", "embedding", "vision")
_GROUPS = (32, 64, 128)  # those of qvl.ops.packing, whose package imports Paddle


@dataclass(frozen=True)
class Scheme:
    """How one kind of matrix is stored; as `qvl.ops.packing.Packing`, which says what there is."""

    kind: Width
    group: int = 0
    symmetric: bool = True

    @property
    def exists(self) -> bool:
        """Whether there is such a packing, without Paddle."""
        groups = {"bf16": (0,), "int8": (0, *_GROUPS), "int4": _GROUPS}.get(self.kind, ())
        return self.group in groups and (self.symmetric is True or (self.symmetric is False and self.kind == "int4"))

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays that a matrix becomes."""
        scales = () if self.kind == "bf16" else ("scales",)
        return ("data", *scales, *(() if self.symmetric else ("zeros",)))

    def packing(self) -> Packing:
        """The same for the ops. Raises ValueError for what does not exist."""
        from qvl.ops.packing import Packing  # whose package imports Paddle

        return Packing(self.kind, self.group, self.symmetric)


@dataclass(frozen=True)
class Quantization:
    """width: what it is called. language: of the layers' projections; embedding: of the token vectors and the head;
    vision: of the tower's and the merger's linears. None: these stay as they are.
    """

    width: Width
    language: Scheme
    embedding: Scheme | None
    vision: Scheme | None

    @staticmethod
    def of(width: Width, group: int = DEFAULT_GROUP, symmetric: bool = DEFAULT_SYMMETRIC) -> Quantization:
        """What a CPU runs, and a GPU by the native ops.

        group, symmetric: of int4, which only the language model's layers take.

        The vectors of words and the head decide between words that are close, and the tower's features enter every
        layer: both are int8 then, which costs little, since most of what a token reads are the layers.
        """
        if width != "int4":
            return Quantization(width, Scheme(width), Scheme(width), Scheme(width))
        return Quantization(width, Scheme("int4", group, symmetric), Scheme("int8"), Scheme("int8"))

    @staticmethod
    def for_gpu(width: Width) -> Quantization:
        """What Paddle's products run on a GPU that has no native ops: the layers alone, int4 in groups of 64."""
        return Quantization(width, Scheme(width, 64 if width == "int4" else 0), None, None)

    @staticmethod
    def of_foreign(foreign: Foreign, rest: bool = False) -> Quantization:
        """What AWQ and GPTQ have quantised, with their numbers. rest: all else is int8 then, as in `of`."""
        language = Scheme(foreign.kind, foreign.packed_group, foreign.symmetric)
        other = Scheme("int8") if rest else None
        return Quantization(foreign.kind, language, other, other)

    def scheme_of(self, name: str) -> Scheme | None:
        """Of the parameter of that name; None: it stays as it is. Matrices alone are ever asked for."""
        if name in (EMBEDDING, LM_HEAD):
            return self.embedding
        return self.vision if name.startswith("visual.") else self.language

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says in `quantization_config`."""
        schemes = {part: getattr(self, part) for part in _PARTS}
        parts = {part: None if scheme is None else asdict(scheme) for part, scheme in schemes.items()}
        return {"quant_method": QUANT_METHOD, "version": _VERSION, "width": self.width, **parts}

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: str) -> Quantization:
        """Raises CheckpointError for another version, or what makes no sense."""
        if data.get("version") != _VERSION:
            raise CheckpointError(
                f"{where}: its quantised weights are of version {data.get('version')!r}, this qvl reads {_VERSION}; "
                "quantise the original again"
            )
        try:
            language = Scheme(**data["language"])
            embedding, vision = (None if data[part] is None else Scheme(**data[part]) for part in _PARTS[1:])
            schemes = [scheme for scheme in (language, embedding, vision) if scheme is not None]
            if data["width"] not in WIDTHS or not all(scheme.exists for scheme in schemes):
                raise ValueError(f"no weights are stored as {data}")
            return Quantization(data["width"], language, embedding, vision)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {KEY} is damaged ({error!r})") from None


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Every matrix that can be quantised, by its parameter's name: (outputs, inputs)."""
    shapes = parameter_shapes(config).items()  # that of patches has five sizes
    return {name: (shape[0], shape[1]) for name, shape in shapes if len(shape) == 2}


def tensor_names(config: ModelConfig, quantization: Quantization) -> list[str]:
    """The tensors of a folder that `qvl quantize` wrote."""
    matrices = matrix_shapes(config)
    names = []
    for name in parameter_shapes(config):
        scheme = quantization.scheme_of(name) if name in matrices else None
        names += [name] if scheme is None else [f"{name}.{key}" for key in scheme.arrays]
    return names


def stored_quantization(folder: Path) -> Quantization | None:
    """What the weights of a folder that `qvl quantize` wrote are; None for any other. Raises CheckpointError."""
    said = read_section(folder)
    if said is None or said.get("quant_method") != QUANT_METHOD:
        return None
    return Quantization.from_dict(said, str(folder / "config.json"))


def refuse_quantised(folder: Path, purpose: str) -> None:
    """Raise CheckpointError where a folder's weights are quantised and `purpose` needs them as they were."""
    stored, foreign = stored_quantization(folder), foreign_of(folder)
    if stored is not None or foreign is not None:
        what = stored.width if stored is not None else _described(foreign)
        raise CheckpointError(f"{folder}: its weights are quantised to {what}; {purpose} takes the original")


def refuse_twice(folder: Path) -> None:
    """Raise CheckpointError where `qvl quantize` wrote a folder. What AWQ and GPTQ have quantised may change layout."""
    if stored_quantization(folder) is not None:
        refuse_quantised(folder, "quantising")


def foreign_quantization(
    foreign: Foreign, asked: str, where: str, device: str = "cpu", dtype: str = "float32"
) -> Quantization:
    """What a run gets of weights that AWQ or GPTQ has quantised. asked: as for `chosen_quantization`; their own width
    has all else quantised too. Raises UsageError for any other, DeviceError for a GPU that cannot run them.
    """
    if asked not in ("auto", foreign.kind):
        raise UsageError(
            f"{where}: its weights are quantised to {_described(foreign)}; --quant {asked} takes the original, "
            "or leave it out"
        )
    if device.startswith("gpu"):
        if (reason := _no_gpu_kernels()) is not None:
            raise DeviceError(
                f"{where}: what {foreign.label} has quantised runs on CPUs; on a GPU it takes the native ops for one "
                f"({reason}), or the original and --quant {foreign.kind}"
            )
        _check_dtype(dtype, f"{where}: what is quantised")
    return Quantization.of_foreign(foreign, rest=asked != "auto")


def _described(foreign: Foreign | None) -> str:
    return "" if foreign is None else f"{foreign.kind} by {foreign.label}"


def chosen_quantization(asked: str, folder: Path, device: str, dtype: str) -> Quantization | None:
    """What a run of a folder gets. asked: the profile's `quantize`; "auto" takes the weights as they are stored.

    Raises UsageError where the folder's weights are something else, DeviceError for what a GPU does not have.
    """
    stored, on_gpu = stored_quantization(folder), device.startswith("gpu")
    if stored is not None:
        if asked not in ("auto", stored.width):
            raise UsageError(
                f"{folder}: its weights are quantised to {stored.width}; --quant {asked} takes the original, "
                "or leave it out"
            )
        if on_gpu:
            reason = "bf16 is for CPUs" if stored.width == "bf16" else _no_gpu_kernels()
            if reason is not None:
                raise DeviceError(
                    f"{folder}: its weights are laid out for CPUs and for the native ops of a GPU ({reason}); take the "
                    f"original and --quant {stored.width}"
                )
            _check_dtype(dtype, f"{folder}: what is quantised")
        return stored
    foreign = foreign_of(folder)
    if foreign is not None:
        return foreign_quantization(foreign, asked, str(folder), device, dtype)
    width = next((width for width in WIDTHS if width == asked), None)
    if width is None or not on_gpu:
        return None if width is None else Quantization.of(width)
    if width == "bf16":
        if dtype != "bfloat16":
            raise DeviceError(f"--quant bf16 on a GPU is --dtype bfloat16; it does not go with {dtype}")
        return None
    _check_dtype(dtype, f"--quant {width}")
    # Which is faster has not been measured; the native ops have token vectors, head and tower in int8 as well.
    return Quantization.for_gpu(width) if _no_gpu_kernels() else Quantization.of(width)


def _no_gpu_kernels() -> str | None:
    """Why packed weights do not run on a GPU; None where they do."""
    from qvl.ops import cuda  # whose package imports Paddle

    return cuda.why_not()


def _check_dtype(dtype: str, what: str) -> None:
    if dtype == "float32":
        raise DeviceError(f"{what} on a GPU needs --dtype bfloat16 or float16")
