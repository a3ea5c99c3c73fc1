"""Ops that go over rows once: norms, gates, and the choice of a token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from qvl import ops
from qvl.bench.opcases.case import OpCase, Sizes, normal

_EPSILON = 1e-6


def rms_norm(sizes: Sizes) -> Iterator[OpCase]:
    width = sizes.config.hidden_size
    weight = normal(width, seed=1)
    for rows in (1, sizes.tokens):
        x = normal(rows, width)
        yield OpCase(
            "rms_norm",
            "",
            rows,
            f"{width}",
            [partial(ops.rms_norm, x, weight, _EPSILON)],
            4 * width * (2 * rows + 1),
        )


def add_rms_norm(sizes: Sizes) -> Iterator[OpCase]:
    width = sizes.config.hidden_size
    weight = normal(width, seed=2)
    for rows in (1, sizes.tokens):
        x, delta = normal(rows, width), normal(rows, width, seed=1)
        call = [partial(ops.add_rms_norm, x, delta, weight, _EPSILON)]
        yield OpCase("add_rms_norm", "", rows, f"{width}", call, 4 * width * (4 * rows + 1))


def layer_norm(sizes: Sizes) -> Iterator[OpCase]:
    width, rows = sizes.config.vision_config.embed_dim, sizes.patches
    x, weight, bias = normal(rows, width), normal(width, seed=1), normal(width, seed=2)
    call = [partial(ops.layer_norm, x, weight, bias, _EPSILON)]
    yield OpCase("layer_norm", "", rows, f"{width}", call, 4 * width * (2 * rows + 2))


def add_layer_norm(sizes: Sizes) -> Iterator[OpCase]:
    width, rows = sizes.config.vision_config.embed_dim, sizes.patches
    x, delta = normal(rows, width), normal(rows, width, seed=1)
    weight, bias = normal(width, seed=2), normal(width, seed=3)
    call = [partial(ops.add_layer_norm, x, delta, weight, bias, _EPSILON)]
    yield OpCase("add_layer_norm", "", rows, f"{width}", call, 4 * width * (4 * rows + 2))


def swiglu(sizes: Sizes) -> Iterator[OpCase]:
    inner = sizes.config.intermediate_size
    for rows in (1, sizes.tokens):
        x = normal(rows, 2 * inner)
        yield OpCase("swiglu", "", rows, f"2x{inner}", [partial(ops.swiglu, x)], 4 * inner * 3 * rows)


def quick_gelu(sizes: Sizes) -> Iterator[OpCase]:
    inner, rows = sizes.config.vision_config.intermediate_size, sizes.patches
    x = normal(rows, inner)
    yield OpCase("quick_gelu", "", rows, f"{inner}", [partial(ops.quick_gelu, x)], 4 * inner * 2 * rows)


def sample(sizes: Sizes) -> Iterator[OpCase]:
    words = sizes.config.vocab_size
    logits = np.random.Generator(np.random.PCG64(0)).standard_normal(words, dtype=np.float32) * np.float32(3)
    none = np.zeros(0, np.int64)
    seen = np.arange(0, words, max(1, words // 300), dtype=np.int64)
    rules = {
        "greedy": (ops.SamplingRule(), none),
        "top-k, top-p, penalty": (
            ops.SamplingRule(temperature=0.7, top_k=50, top_p=0.9, repetition_penalty=1.05),
            seen,
        ),
    }
    for name, (rule, before) in rules.items():
        call = [partial(ops.sample, logits, rule, before, none, 0.4)]
        yield OpCase("sample", name, 1, f"{words}", call, 4 * words)
