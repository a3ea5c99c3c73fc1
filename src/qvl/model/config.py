"""The shape of a Qwen2-VL model, read from `config.json`. No Paddle here.

Two forms exist: flat, with `rope_scaling` (what the published checkpoints have), and nested, with `text_config` and
`rope_parameters` (what transformers 5 writes). Both are read; the flat one is written, since every reader takes it.
Names are those of the Hugging Face file. What every vocabulary of the family shares stands at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import CheckpointError
from qvl.model import foreign

ARCHITECTURE = "Qwen2VLForConditionalGeneration"
# What `qvl quantize` calls itself in `quantization_config`; what that says is `model.quantization`'s part.
QUANT_METHOD = "qvl"


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `hidden_size` is the width of its output, that of the language model."""

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 3584
    num_heads: int = 16
    mlp_ratio: float = 4
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: 1176 for the published models."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def intermediate_size(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)


@dataclass(frozen=True)
class ModelConfig:
    """The language model and the ids that tie it to the vision tower."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645
    torch_dtype: str = "bfloat16"
    vision_config: VisionConfig = field(default_factory=VisionConfig)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @staticmethod
    def from_folder(folder: Path) -> ModelConfig:
        """Read `config.json` of a checkpoint folder. Raises CheckpointError, naming the file."""
        path = folder / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: no config.json there, so this is not a checkpoint folder") from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: a JSON object was expected")
        return ModelConfig.from_dict(data, str(path))

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Read either form. Raises CheckpointError for another architecture or a missing or impossible size."""
        text = {**data, **_section(data, "text_config", where)}
        vision = _section(data, "vision_config", where)
        _check_supported(data, text, vision, where)
        rope = _rope(text, where)
        sizes = {name: _positive(text, name, where) for name in _REQUIRED}
        head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
        section = tuple(rope.get("mrope_section") or (16, 24, 24))
        if len(section) != 3 or 2 * sum(section) != head_dim:
            raise CheckpointError(
                f"{where}: mrope_section {list(section)} does not add up to half of head_dim {head_dim}"
            )
        if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
            raise CheckpointError(f"{where}: num_attention_heads is not a multiple of num_key_value_heads")
        optional = {name: text[name] for name in _OPTIONAL if text.get(name) is not None}
        if isinstance(optional.get("eos_token_id"), list):
            optional["eos_token_id"] = tuple(optional["eos_token_id"])
        for name in _TOKEN_IDS:  # a nested file keeps these at the top
            if data.get(name) is not None:
                optional[name] = data[name]
        # transformers 5 has it at the top; 4.52 to 4.57 write it inside alone where the top has the default.
        tied = data.get("tie_word_embeddings")
        return ModelConfig(
            **sizes,
            **optional,
            tie_word_embeddings=bool(text.get("tie_word_embeddings", False) if tied is None else tied),
            rope_theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1_000_000.0),
            mrope_section=section,
            torch_dtype=str(text.get("torch_dtype") or text.get("dtype") or "bfloat16"),
            vision_config=_vision(vision, sizes["hidden_size"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The flat form of `config.json`, complete, so that no reader has to know a default."""
        vision = self.vision_config
        flat = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL, *_TOKEN_IDS, "torch_dtype")}
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen2_vl",
            **flat,
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "rope_theta": self.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(self.mrope_section)},
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": vision.depth,
                "embed_dim": vision.embed_dim,
                "hidden_size": vision.hidden_size,
                "num_heads": vision.num_heads,
                # transformers 5 refuses a float here, and so does what is built on it.
                "mlp_ratio": int(ratio) if (ratio := vision.mlp_ratio) == int(ratio) else ratio,
                "hidden_act": "quick_gelu",
                "in_channels": vision.in_channels,
                "in_chans": vision.in_channels,
                "patch_size": vision.patch_size,
                "spatial_patch_size": vision.patch_size,
                "spatial_merge_size": vision.spatial_merge_size,
                "temporal_patch_size": vision.temporal_patch_size,
            },
        }


_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
_OPTIONAL = ("max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id")
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def _section(data: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A nested object without what it leaves open; absent and null are the same."""
    section = data.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{where}: {name} is {section!r}; a JSON object was expected")
    return {key: value for key, value in section.items() if value is not None}


def _rope(text: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The rotary settings under either name. A stretched context turns angles otherwise, so answers would be wrong."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name) or {}
        if not isinstance(rope, Mapping):
            raise CheckpointError(f"{where}: {name} is {rope!r}; a JSON object was expected")
        for key in ("rope_type", "type"):
            if rope.get(key) not in (None, "default", "mrope"):
                raise CheckpointError(f"{where}: {name} asks for {key} {rope[key]!r}, which qvl does not support yet")
    return text.get("rope_parameters") or text.get("rope_scaling") or {}


def _check_supported(data: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any], where: str) -> None:
    """qvl runs Qwen2-VL and says so at once for its neighbours, whose weights would load but answer wrongly."""
    model_type = data.get("model_type")
    architectures = data.get("architectures") or []
    if model_type != "qwen2_vl":
        raise CheckpointError(f"{where}: model_type is {model_type!r}; qvl runs qwen2_vl")
    if architectures and ARCHITECTURE not in architectures:
        raise CheckpointError(f"{where}: architecture {architectures[0]} is not supported; qvl runs {ARCHITECTURE}")
    quantised = text.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, Mapping) else quantised
        if isinstance(quantised, Mapping) and method in foreign.METHODS:
            foreign.Foreign.from_dict(quantised, where)  # which refuses what qvl does not read
        elif method != QUANT_METHOD:
            raise CheckpointError(f"{where}: quantised checkpoints ({method}) are not supported; take the original")
    if text.get("use_sliding_window"):
        raise CheckpointError(f"{where}: use_sliding_window is set, which no published Qwen2-VL does; not supported")
    for holder, expected in ((text, "silu"), (vision, "quick_gelu")):
        if (holder.get("hidden_act") or expected) != expected:
            raise CheckpointError(f"{where}: hidden_act {holder['hidden_act']!r} is not supported, only {expected!r}")


def _positive(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"{where}: {name} is {value!r}; a positive whole number was expected")
    return value


def _vision(data: Mapping[str, Any], hidden_size: int) -> VisionConfig:
    """Published files list only some keys, under older names; the rest are the defaults."""
    aliases = {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}
    known = {name: data[alias] for alias, name in aliases.items() if alias in data}
    known |= {name: data[name] for name in VisionConfig.__dataclass_fields__ if name in data}
    return VisionConfig(**{**known, "hidden_size": hidden_size})


# How Qwen2 splits text before byte-pair merging (published in its tokenizer.json).
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the published order; the first one has the id that follows the vocabulary.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def byte_alphabet() -> dict[str, int]:
    """The 256 characters of a byte-level vocabulary, in the order Qwen2 lists them, and the byte each stands for.

    GPT-2's: printable Latin-1 stands for itself, the rest is moved to U+0100 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}
