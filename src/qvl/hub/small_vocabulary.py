"""A small vocabulary of qvl's own, and every file a Qwen2-VL folder has beside its weights.

Random and demonstration models need a tokenizer without downloading one. The merges are a data file of this package;
the special tokens are Qwen2-VL's, in its order, placed where a model's config expects them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from qvl.model.checkpoint_writer import write_json
from qvl.model.config import SPECIAL_TOKENS, SPLIT_PATTERN, ModelConfig, byte_alphabet

MERGES_FILE = Path(__file__).with_name("small_merges.txt")

# Behaves as the published template does, laid out for reading: the dashes make Jinja drop the line breaks.
CHAT_TEMPLATE = r"""
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- if messages and messages[0].role != 'system' -%}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{{ ('Picture ' ~ seen.pictures ~ ': ' if add_vision_id else '') + '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{ ('Video ' ~ seen.videos ~ ': ' if add_vision_id else '') + '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}
""".strip()
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


Merges = tuple[str, ...]


@lru_cache(maxsize=1)
def small_merges() -> Merges:
    """The merges that come with qvl, each "left right", the first ones first."""
    return tuple(MERGES_FILE.read_text(encoding="utf-8").splitlines())


def vocabulary_size() -> int:
    """How many ordinary tokens there are: the bytes and one for each merge. Special tokens come behind them."""
    return 256 + len(small_merges())


def first_special_id(config: ModelConfig) -> int:
    """The id of <|endoftext|>, from where the config has <|image_pad|>. Raises ValueError when they do not fit."""
    first = config.image_token_id - SPECIAL_TOKENS.index("<|image_pad|>")
    placed = (config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
    wanted = tuple(first + SPECIAL_TOKENS.index(f"<|{name}|>") for name in ("video_pad", "vision_start", "vision_end"))
    if placed != wanted:
        raise ValueError(f"the vision tokens are at {placed}, but behind image_pad they would be at {wanted}")
    if first < vocabulary_size() or first + len(SPECIAL_TOKENS) > config.vocab_size:
        raise ValueError(f"special tokens at {first} do not fit between {vocabulary_size()} and {config.vocab_size}")
    return first


def vocabulary(size: int, merges: Merges | None = None) -> dict[str, int]:
    """Token to id. Beyond the real tokens the ids up to `size` get filler words, which text is never encoded to.

    Fillers let a random model with the published 151 936 rows decode whatever it samples.
    """
    tokens = list(byte_alphabet()) + [
        merge.replace(" ", "") for merge in (small_merges() if merges is None else merges)
    ]
    # "~" never follows the space mark in a merge, so a filler cannot be the name of a real token.
    tokens += [f"Ġ~{number}" for number in range(size - len(tokens))]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) != size:
        raise ValueError(f"{size} different tokens were wanted, {len(ids)} came out")
    return ids


def build_tokenizer(first_special: int, merges: Merges | None = None) -> Tokenizer:
    """The tokenizer with its special tokens from `first_special` on."""
    merges = small_merges() if merges is None else merges
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(vocab=vocabulary(first_special, merges), merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(folder: Path, config: ModelConfig, merges: Merges | None = None) -> None:
    """Write tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and chat_template.json."""
    first = first_special_id(config)
    merges = small_merges() if merges is None else merges
    build_tokenizer(first, merges).save(str(folder / "tokenizer.json"))
    write_json(folder / "vocab.json", vocabulary(first, merges), indent=None)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added: dict[str, Any] = {
        str(first + offset): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for offset, token in enumerate(SPECIAL_TOKENS)
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": config.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def write_processor(folder: Path, config: ModelConfig, *, tokens: tuple[int, int] = (4, 16384)) -> None:
    """Write preprocessor_config.json. tokens: the least and most of a picture, by default as published."""
    vision = config.vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": tokens[0] * factor**2,
        "max_pixels": tokens[1] * factor**2,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }
    write_json(folder / "preprocessor_config.json", settings)
