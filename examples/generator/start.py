"""`python -m examples.generator.start FOLDER`: the demo model before it has learnt, with its vocabulary."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from examples.generator.samples import sample
from examples.generator.scenes import COLOURS
from examples.generator.tower import GROUPS, THINGS, tokens_of_words
from qvl.hub.random_checkpoint import TINY, parameter_shapes
from qvl.hub.small_vocabulary import SPLIT_PATTERN, write_processor, write_tokenizer
from qvl.model.checkpoint_writer import write_json, write_weights
from qvl.model.config import SPECIAL_TOKENS, ModelConfig, VisionConfig
from qvl.ops.rotary import inverse_frequencies, mrope_axes
from qvl.processing.tokenizer import Tokenizer

_WORDS = 1010  # bytes and merges; the special tokens come behind and fill a table of 1024 rows
# 3.1 million parameters, about as many as an hour and a half of training on two cores can make use of.
DEMO = replace(
    TINY,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=512,
    vocab_size=1024,
    rope_theta=10_000.0,
    mrope_section=(1, 6, 9),
    max_position_embeddings=4096,
    torch_dtype="bfloat16",
    vision_config=VisionConfig(depth=4, embed_dim=128, hidden_size=192, num_heads=4),
)
# Root mean square of what enters the layers. What they add has to begin no larger, or a word is lost among the sums of
# all others before anything has been learnt, and the model never finds out how to repeat a word of the question.
STREAM = 0.07
_ROWS = 4.5  # strength of the frequencies of rows
_COPIED = 0.7  # how much of a word a head copies at first
_ALIKE = 1.2  # how much tokens alike outweigh others at first
_PICTURED = 3.6  # and how much those of a picture do
_WORD_ROWS = "model.embed_tokens.weight"
TOKENS = (25, 42)  # of a picture: all are brought to about the same size, whatever they come in


def learn_merges(samples: int = 4000) -> tuple[str, ...]:
    """The merges of a byte-level BPE over what is said in the first samples.

    Texts to be read are left out, so that they stay single letters, which are what can be seen.
    """

    def lines() -> Iterator[str]:
        for number in range(samples):
            for turn in sample("vocabulary", number).turns:
                yield turn.question
                yield re.sub(r'"[^"]*"|<\|[^|]*\|>|\([\d,]*\)', " ", turn.answer)

    tokenizer = Backend(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=_WORDS, initial_alphabet=alphabet, min_frequency=8, show_progress=False)
    tokenizer.train_from_iterator(lines(), trainer)
    path = tokenizer.model
    return _merges_of(path)


def _merges_of(model: BPE) -> tuple[str, ...]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        text = (Path(folder) / "merges.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def write_start(folder: Path, config: ModelConfig = DEMO, seed: int = 0) -> None:
    """Write the whole folder: small normal weights, the usual start of a transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    first = config.image_token_id - SPECIAL_TOKENS.index("<|image_pad|>")
    if first < _WORDS - 12:
        raise ValueError(f"special tokens begin at {first}, inside the {_WORDS} words")
    write_processor(folder, config, tokens=TOKENS)
    write_tokenizer(folder, config, learn_merges())
    shapes = parameter_shapes(config)
    words, *told = word_rows(config, Tokenizer.from_folder(folder), seed)
    made = {_WORD_ROWS: words, **attention_biases(config), **attention_weights(config, seed, *told)}

    def produce(name: str) -> Iterable[npt.NDArray[np.float32]]:
        shape = shapes[name]
        rng = _rng(seed, name)
        if name in made:
            return [made[name]]
        if len(shape) == 1:
            value = 0.0 if name.endswith("bias") else 1.0
            return [np.full(shape, value, np.float32)]
        if "patch_embed" in name:
            return [patch_filters(shape)]
        std = 1 / np.sqrt(np.prod(shape[1:]))
        if name.endswith(("attn.proj.weight", "fc2.weight")):
            std *= 0.5
        elif name.endswith(("o_proj.weight", "down_proj.weight", "merger.mlp.2.weight")):
            std *= STREAM
        elif name.endswith(("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight")):
            std *= 0.25  # what stands there does not drown where it stands
        return [rng.normal(0, std, shape).astype(np.float32)]

    write_weights(folder, shapes, config.torch_dtype, produce, metadata_format="pt", shard_bytes=None)
    write_json(folder / "config.json", config.to_dict())
    ends = [first + SPECIAL_TOKENS.index("<|im_end|>"), first]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": first, "do_sample": False})


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def word_rows(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> tuple[npt.NDArray[np.float32], ...]:
    """The table of embeddings, [vocab_size, hidden_size]; and of its rows that for a picture's token, those of names
    and those of places.

    The picture's token, which is never seen itself, is at right angles to all words that a tower tells.
    """
    rows = _rng(seed, _WORD_ROWS).normal(0, STREAM, (config.vocab_size, config.hidden_size))
    told = rows[tokens_of_words(tokenizer)]
    picture = rows[config.image_token_id]
    picture -= told.T @ np.linalg.lstsq(told.T, picture, rcond=None)[0]
    picture *= STREAM * np.sqrt(config.hidden_size) / np.linalg.norm(picture)
    is_name = np.asarray([word in THINGS or word in COLOURS for group in GROUPS for word in group])
    is_place = np.asarray([len(group) == 2 for group in GROUPS for _ in group])
    return rows.astype(np.float32), picture, told[is_name], told[is_place]


def attention_biases(config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Biases of queries and keys with which some heads look at a fixed distance from the start, by parameter name.

    Rotary embedding turns a constant query and a constant key into a score that depends on their distance alone. So the
    first layers of the tower see as a convolution does, each head one neighbour. Three heads of the language model's
    first layer see the last three words, the first step to repeating one. One tells rows of a picture apart: the token
    of row h looks at the word 7 - h before the picture, another one in each row; columns turn too slowly for that.
    Heads that look for what is alike (`attention_weights`) prefer tokens of pictures. All of it can be unlearnt.
    """
    made = {}
    vision = config.vision_config
    width, dim = vision.embed_dim, vision.embed_dim // vision.num_heads
    angles = inverse_frequencies(dim // 2, 10_000.0)
    for layer, (reach, strength) in enumerate(((1, 4.7), (2, 3.5))):
        bias = np.zeros((3, vision.num_heads, dim), np.float32)
        for head, (down, right) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
            turns = np.concatenate([down * reach * angles, right * reach * angles])
            scale = np.tile(
                np.where(np.arange(dim // 4) < 2, strength, 0.0), 2
            )  # the frequencies that differ on a grid
            bias[0, head] = np.concatenate([scale * np.cos(turns), scale * np.sin(turns)])
            bias[1, head] = np.concatenate([scale, np.zeros_like(scale)])
        made[f"visual.blocks.{layer}.attn.qkv.bias"] = bias.reshape(3 * width)
    dim, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    angles = inverse_frequencies(dim, config.rope_theta)
    axes = mrope_axes(config.mrope_section)
    scale = np.where(axes == 1, _ROWS, 0.0)
    queries = np.zeros((config.num_attention_heads, dim), np.float32)
    keys = np.zeros((config.num_key_value_heads, dim), np.float32)
    near = np.arange(dim // 2) < dim // 4
    keys[0] = np.concatenate([np.where(near, 4.2, 0.0), np.zeros(dim // 2)])
    keys[1] = np.concatenate([scale, np.zeros(dim // 2)])
    looks = [(0, -back, np.where(near, 4.2, 0.0)) for back in (1, 2, 3)]
    looks.append((1, -7, scale))
    for number, (kv_head, distance, strength) in enumerate(looks):
        turns = distance * angles
        queries[kv_head * group + number % group] = np.concatenate([strength * np.cos(turns), strength * np.sin(turns)])
    made["model.layers.0.self_attn.q_proj.bias"] = queries.reshape(-1)
    made["model.layers.0.self_attn.k_proj.bias"] = keys.reshape(-1)
    seeking = np.zeros_like(queries)
    seeking[::group, dim // 2 - 1] = _PICTURED
    for layer in _seeking(config):
        made[f"model.layers.{layer}.self_attn.q_proj.bias"] = seeking.reshape(-1)
    return made


def _seeking(config: ModelConfig) -> range:
    return range(1, config.num_hidden_layers - 1)


def attention_weights(
    config: ModelConfig,
    seed: int,
    picture: npt.NDArray[np.floating],
    names: npt.NDArray[np.floating],
    places: npt.NDArray[np.floating],
) -> dict[str, npt.NDArray[np.float32]]:
    """Weights with which heads of the language model copy, and find alike with alike, by parameter name.

    names, places: [words, hidden_size], the rows of the words that things are called by, and of those for their size
    and place. What a head takes from a token it adds where it looks from, in the same directions. But the first layer
    copies the names that it sees, whole, into directions that no told word has anything of: added as they are, they
    would be said again. In the layers between the first and the last, one head of each group looks from there for
    tokens that have the same names in them: a thing, whose features are like the words for it (`tower.py`), is found by
    its name. It compares in the numbers that rotary embedding turns slowest, so that distance matters least. The
    slowest of all is kept for `picture`, [hidden_size], which all tokens of pictures have in them: otherwise a name
    would find itself.
    """
    made = {}
    width, dim, groups = config.hidden_size, config.head_dim, config.num_key_value_heads
    heads = config.num_attention_heads // groups
    slow = np.flatnonzero(inverse_frequencies(dim, config.rope_theta) < 0.08)[:-1]
    slow = np.concatenate([slow, slow + dim // 2])
    if len(names) > len(slow):
        raise ValueError(f"heads of {dim} compare {len(slow)} numbers, too few for {len(names)} names")
    slow = slow[: len(names)]
    rng = np.random.default_rng([seed, *b"attention"])
    # Orthonormal: what spans the names, and as many directions that no told word has anything of.
    told = np.concatenate([names, places, picture[None]]).T
    spanning = np.linalg.qr(np.concatenate([told, rng.normal(size=(width, len(names)))], axis=1))[0]
    said, heard = spanning[:, : len(names)], spanning[:, -len(names) :]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn"
        values = [np.linalg.qr(rng.normal(size=(width, dim)))[0].T for _ in range(groups)]
        adds = [value.T for value in values]
        if layer == 0:
            values = [np.concatenate([said.T, value[len(names) :]]) for value in values]
            adds = [np.concatenate([heard, value.T[:, len(names) :]], axis=1) for value in values]
        made[f"{name}.v_proj.weight"] = np.concatenate(values)
        copies = np.concatenate([np.tile(add, heads) for add in adds], axis=1)
        made[f"{name}.o_proj.weight"] = _COPIED * STREAM * copies
        if layer not in _seeking(config):
            continue
        queries = rng.normal(0, 1 / np.sqrt(width), (groups, heads, dim, width))
        keys = rng.normal(0, 1 / np.sqrt(width), (groups, dim, width))
        for number in range(groups):
            keys[number, slow] = _ALIKE * said.T
            keys[number, dim // 2 - 1] = _PICTURED * picture / np.linalg.norm(picture)
            queries[number, 0] = 0
            queries[number, 0, slow] = _ALIKE * heard.T
            queries[number, 1:, dim // 2 - 1] = 0
        made[f"{name}.q_proj.weight"] = queries.reshape(-1, width)
        made[f"{name}.k_proj.weight"] = keys.reshape(-1, width)
    return {name: np.asarray(weight, np.float32) for name, weight in made.items()}


def patch_filters(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Cosines of low frequency over a patch, in brightness and two colour contrasts: float32 of `shape`.

    shape: [filters, colours, frames, height, width]. What an eye, or a trained first layer, begins with; learning them
    from noise would take longer than all the rest. One filter in eight tells the two frames of a clip apart.
    """
    filters, _, frames, height, width = shape
    colours = np.asarray([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]], np.float64)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    waves = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda wave: (wave[0] ** 2 + wave[1] ** 2, wave))
    made = []
    for kind, count in (("still", filters - filters // 8), ("moving", filters // 8)):
        over_time = np.ones(frames) if kind == "still" else np.linspace(-1, 1, frames)
        for number in range(count):
            (u, v), colour = waves[number // 3], colours[number % 3]
            rows = np.cos(np.pi * u * (np.arange(height) + 0.5) / height)
            columns = np.cos(np.pi * v * (np.arange(width) + 0.5) / width)
            wave = np.einsum("c,t,h,w->cthw", colour, over_time, rows, columns)
            # The mean of a patch is many times stronger than its edges.
            made.append(wave / np.linalg.norm(wave) / (20 if (u, v) == (0, 0) else 6))
    return np.asarray(made, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.generator.start", description=__doc__)
    parser.add_argument("folder", type=Path)
    write_start(parser.parse_args().folder)


if __name__ == "__main__":
    main()
