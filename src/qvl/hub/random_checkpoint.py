"""Writes a complete Qwen2-VL checkpoint folder of any shape with random weights, without Paddle.

Tests use a tiny one, benchmarks the full 2B shape. Every tensor is drawn from its own generator, seeded by the seed
and its name, and streamed to disk, so neither the order nor the size of the model matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qvl.hub.small_vocabulary import first_special_id, write_processor, write_tokenizer
from qvl.model.checkpoint_writer import write_json, write_weights
from qvl.model.config import SPECIAL_TOKENS, ModelConfig
from qvl.model.shapes import FULL_2B, TINY, parameter_shapes

__all__ = [
    "FULL_2B",
    "TINY",
    "RandomWeights",
    "is_linear",
    "parameter_shapes",
    "tensors_sha256",
    "write_checkpoint",
    "write_settings",
]

Dtype = Literal["float32", "float16", "bfloat16"]
Layout = Literal["hf", "paddle"]
ConfigForm = Literal["flat", "nested"]

GENERATOR_VERSION = 1  # raised when the same config and seed come to mean other weights or another vocabulary
_METADATA = {"hf": "pt", "paddle": "np"}
_BLOCK_NUMBERS = 1 << 20  # drawn and written at once: 4 MB, which stays in the cache


def is_linear(name: str) -> bool:
    """Whether a parameter is the weight of a linear layer, which Paddle stores the other way round."""
    return name.endswith(".weight") and not any(
        part in name for part in ("norm", "ln_q", "embed_tokens", "patch_embed.proj")
    )


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: Dtype = "float32",
    layout: Layout = "hf",
    config_form: ConfigForm = "flat",
    shard_bytes: int | None = None,
    tokenizer: bool = True,
) -> None:
    """Write a whole folder. The weights depend on the config and the seed alone, whatever the other arguments.

    shard_bytes: start a new file once one would grow past this; None writes a single model.safetensors.
    layout: "paddle" turns linears to [in, out] and says so in the files' metadata.
    config_form: "nested" writes config.json as transformers 5 does.
    tokenizer: leave False to write the weights and config.json only.
    Raises ValueError when the vision tokens of the config are not where Qwen2-VL has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = RandomWeights(config, seed)
    turned = {name for name in weights.shapes if layout == "paddle" and is_linear(name)}
    shapes = {name: shape[:: -1 if name in turned else 1] for name, shape in weights.shapes.items()}

    def produce(name: str) -> Iterable[npt.NDArray[np.float32]]:
        return [weights.tensor(name).T] if name in turned else weights.blocks(name)

    write_weights(folder, shapes, dtype, produce, metadata_format=_METADATA[layout], shard_bytes=shard_bytes)
    write_settings(folder, config, dtype=dtype, config_form=config_form, tokenizer=tokenizer)


def write_settings(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: Dtype = "float32",
    config_form: ConfigForm = "flat",
    tokenizer: bool = True,
) -> None:
    """Write all of a folder but the weights; see `write_checkpoint`, whose arguments and errors these are."""
    config = replace(config, torch_dtype=dtype)
    write_json(folder / "config.json", config.to_dict() if config_form == "flat" else _nested(config))
    if tokenizer:
        write_json(folder / "generation_config.json", _generation(first_special_id(config)))
        write_processor(folder, config)
        write_tokenizer(folder, config)


class RandomWeights:
    """The parameters of a config for one seed, in the Hugging Face layout; any of them can be had alone."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.shapes = parameter_shapes(config)
        self.seed = seed
        # Where the special tokens begin. They and the unused rows behind them are kept from ever being the answer.
        self._words = config.image_token_id - SPECIAL_TOKENS.index("<|image_pad|>")

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One parameter, whole."""
        return np.concatenate(list(self.blocks(name))).reshape(self.shapes[name])

    def blocks(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """The same in order, as [rows, everything else] blocks of about 4 MB."""
        shape = self.shapes[name]
        generator = self._generator(name)
        mean, std = (np.float32(value) for value in _mean_and_std(name, shape))
        scales = self._row_scales(name, shape[0]) if name.startswith(("model.embed_tokens", "lm_head")) else None
        width = _numbers(shape[1:])
        rows = max(1, _BLOCK_NUMBERS // width)
        for first in range(0, shape[0], rows):
            block = generator.standard_normal((min(rows, shape[0] - first), width), dtype=np.float32)
            block *= std
            block += mean
            if scales is not None:
                block *= scales[first : first + rows, None]
            yield block

    def _generator(self, name: str) -> np.random.Generator:
        key = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))

    def _row_scales(self, name: str, rows: int) -> npt.NDArray[np.float32]:
        """A few long token vectors and many short ones, so that the best token is ahead by more than rounding.

        Only operations that IEEE 754 defines to the last bit: an exponential differs between processors.
        """
        uniform = self._generator(f"{name}:rows").random(rows, dtype=np.float32)
        scales = np.float32(1 / 3) / (np.float32(0.1) + uniform)
        scales[self._words :] = np.float32(0.1)
        return scales


def tensors_sha256(config: ModelConfig, seed: int) -> str:
    """A fingerprint of all weights as float32: tells a changed generator from a changed model."""
    digest = hashlib.sha256()
    weights = RandomWeights(config, seed)
    for name, shape in weights.shapes.items():
        digest.update(f"{name}{list(shape)}".encode())
        for block in weights.blocks(name):
            digest.update(block.astype("<f4").tobytes())
    return digest.hexdigest()


# How much larger than 1/sqrt(fan-in) the weights of a linear are. Queries and keys are large so that attention picks
# places instead of averaging all of them, which would make every picture look the same; the language model's token
# vectors are small beside what the layers add, or each token would predict itself.
_GAINS: tuple[tuple[str, float], ...] = (
    ("visual.patch_embed", 2.0),
    ("attn.qkv", 1.5),
    ("merger.mlp.2", 2.0),
    ("q_proj", 2.0),
    ("k_proj", 2.0),
    ("down_proj", 3.0),
    ("embed_tokens", 0.5),
    ("lm_head", 0.5),
)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) == 1:
        is_norm = name.endswith(".weight")
        if name == "model.norm.weight":
            return 4.0, 0.4  # brings the logits of short token vectors to a standard deviation of 2
        return (1.0, 0.1) if is_norm else (0.0, 0.1)
    gain = next((gain for part, gain in _GAINS if part in name), 1.0)
    return 0.0, gain / float(np.sqrt(_numbers(shape[1:])))


def _numbers(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _nested(config: ModelConfig) -> dict[str, Any]:
    """The form transformers 5 writes: the language model's keys in `text_config`, rope in one object."""
    flat = config.to_dict()
    top = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    data = {name: flat.pop(name) for name in ("architectures", "model_type", *top)}
    vision = flat.pop("vision_config") | {"model_type": "qwen2_vl_vision"}
    dtype, theta, scaling = flat.pop("torch_dtype"), flat.pop("rope_theta"), flat.pop("rope_scaling")
    rope = {"mrope_section": scaling["mrope_section"], "rope_theta": theta, "rope_type": "default", "type": "mrope"}
    text = {**flat, "model_type": "qwen2_vl_text", "dtype": dtype, "rope_parameters": rope}
    return {**data, "dtype": dtype, "text_config": text, "vision_config": vision}


def _generation(first_special: int) -> dict[str, Any]:
    end_of_text = first_special
    end_of_turn = first_special + SPECIAL_TOKENS.index("<|im_end|>")
    return {
        "bos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
    }
