"""Quantised models: what they compute, alone and together with everything else."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from qvl.model.packed import projections
from qvl.model.packed_store import quantise_folder
from qvl.model.quantization import WIDTHS, Quantization, Width
from qvl.ops import native
from qvl.runtime import memory
from qvl.runtime.engine import Engine
from qvl.runtime.session import Session
from tests.conftest import CheckpointOf
from tests.golden import GOLDEN
from tests.unit.quantized_support import (
    GREEDY,
    QUESTION,
    WORDS,
    Logits,
    cosine,
    dequantised,
    difference,
    engine,
    packed_weights,
)

each_width = pytest.mark.parametrize("width", WIDTHS)

# How far logits may be from those of the dequantised weights in float32, in terms of their range. The composed body
# computes in float32; the native one rounds activations, to bfloat16 for bf16 and, in groups of a row, to int8 else.
FLOAT32 = 2e-5
ROUNDED: dict[Width, float] = {"bf16": 0.02, "int8": 0.06, "int4": 0.06}

BUILT = pytest.mark.skipif(bool(native.why_not()), reason="the native ops are not built")
native_too = pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=BUILT)])


# Where activations keep float32, so that the same token follows.
EXACT = [
    *((width, "composed", None) for width in WIDTHS),
    pytest.param("bf16", "native", "portable", marks=BUILT),
]


@each_width
@native_too
def test_logits_are_those_of_the_dequantised_weights(width: Width, mode: str, tiny_checkpoint: Path) -> None:
    with native.using(mode):  # type: ignore[arg-type]
        if mode == "composed":
            with pytest.warns(UserWarning, match=f"{width} weights are slow here"):
                quantised = engine(tiny_checkpoint, width)
        else:
            quantised = engine(tiny_checkpoint, width)
        got = quantised.next_logits(QUESTION)
        wanted = dequantised(tiny_checkpoint, width).next_logits(QUESTION)
    assert difference(got, wanted) < (FLOAT32 if mode == "composed" else ROUNDED[width])
    assert cosine(got, wanted) > 0.999
    plain = engine(tiny_checkpoint).next_logits(QUESTION)
    assert difference(wanted, plain) > 1e-4, "the weights were rounded at all"


@pytest.mark.parametrize(("width", "mode", "level"), EXACT)
def test_an_answer_token_by_token_is_that_of_the_dequantised_weights(
    width: Width, mode: native.Mode, level: str | None, tiny_checkpoint: Path
) -> None:
    """Through the cache, where attention takes the three projections as one."""
    with native.using(mode, level=level), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = engine(tiny_checkpoint, width).generate(QUESTION, GREEDY)
        wanted = dequantised(tiny_checkpoint, width).generate(QUESTION, GREEDY)
    assert answer.token_ids == wanted.token_ids


def test_bfloat16_weights_of_a_bfloat16_checkpoint_are_exact(checkpoint_variant: CheckpointOf) -> None:
    folder = checkpoint_variant("bfloat16")
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        got = engine(folder, "bf16").next_logits(QUESTION)
    assert difference(got, engine(folder).next_logits(QUESTION)) < FLOAT32


@pytest.mark.parametrize("variant", ["untied", "paddle", "bfloat16"])
def test_any_form_of_checkpoint_is_quantised(variant: str, checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_variant(variant)
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        wanted = dequantised(source, "int8").next_logits(QUESTION)
        quantise_folder(source, tmp_path / "out", Quantization.of("int8"))
        got = engine(tmp_path / "out").next_logits(QUESTION)
    assert difference(got, wanted) < FLOAT32


@each_width
@pytest.mark.parametrize("variant", ["tiny", "untied"])
def test_the_count_of_bytes_is_that_of_the_model(width: Width, variant: str, checkpoint_variant: CheckpointOf) -> None:
    loaded = engine(checkpoint_variant(variant), width)
    held = sum(4 * parameter.size for parameter in loaded.model.parameters())
    weights = [weight for layer in projections(loaded.model) for weight in packed_weights(layer)]
    weights.append(loaded.model.model.embed_tokens.weight)
    for weight in weights:
        held += weight.matrix.nbytes + (0 if weight.bias is None else weight.bias.nbytes)
    assert memory.weight_bytes(loaded.config, "float32", (), loaded.quantization) == held


@each_width
@pytest.mark.parametrize("name", ["language", "visual"])
def test_an_adapter_is_added_to_quantised_weights(width: Width, name: str, tiny_checkpoint: Path) -> None:
    adapter = str(GOLDEN / "adapter" / name)
    with native.using("composed"), pytest.warns(UserWarning, match="slow"):
        adapted, bare = engine(tiny_checkpoint, width, adapter), engine(tiny_checkpoint, width)
        got, without = adapted.next_logits(QUESTION), bare.next_logits(QUESTION)
        wanted = dequantised(tiny_checkpoint, width, adapter).next_logits(QUESTION)
    assert difference(got, wanted) < FLOAT32
    assert difference(got, without) > 0.01


@each_width
@BUILT
def test_batches_drafts_and_sessions_answer_as_a_single_run(width: Width, tiny_checkpoint: Path) -> None:
    """With a level whose arithmetic does not depend on how many rows there are; bfloat16 and tile units are others."""
    off = replace(GREEDY, speculate="off")
    with native.using("native", level="portable"):
        loaded = engine(tiny_checkpoint, width)
        alone = [loaded.generate(talk, off).token_ids for talk in (QUESTION, WORDS)]
        together = loaded.generate_batch([QUESTION, WORDS, QUESTION], off)
        assert [answer.token_ids for answer in together] == [*alone, alone[0]]
        drafted = loaded.generate(QUESTION, replace(GREEDY, speculate="on"))
        assert drafted.token_ids == alone[0]
        session = Session(loaded)
        for talk, expected in ((QUESTION, alone[0]), (QUESTION, alone[0]), (WORDS, alone[1])):
            assert sum((chunk.token_ids for chunk in session.stream(talk, off)), ()) == expected


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.02), ("int8", 0.03)])
@native_too
def test_a_shorter_cache_takes_what_was_said_and_changes_little(
    dtype: str, bound: float, mode: str, tiny_checkpoint: Path
) -> None:
    with native.using(mode):  # type: ignore[arg-type]
        plain, short = engine(tiny_checkpoint), engine(tiny_checkpoint, cache_dtype=dtype)
        full, got = _last(plain), _last(short)
    assert 0 < difference(got, full) < bound
    cache = short.cache(100)
    tensors = [*cache._keys, *cache._values, *cache._key_scales, *cache._value_scales]
    from qvl.runtime.cache import cache_bytes

    assert str(cache._keys[0].dtype) == f"paddle.{dtype}"
    assert sum(int(t.size) * int(t.element_size()) for t in tensors) == cache_bytes(short.config, 100, dtype)
    prompt = short.prompt(QUESTION)
    said = memory.need(short.config, prompt, 100, "float32", 0, memory.Held(dtype))
    assert said.cache == cache_bytes(short.config, len(prompt) + 100, dtype)


def _last(loaded: Engine) -> Logits:
    """Logits of a token behind a prompt in a cache."""
    from qvl.runtime.decode import Feed, advance

    answering = loaded.begin(loaded.prompt(QUESTION), GREEDY)
    with loaded.computing():
        return advance(loaded.model, [Feed(answering.cache, [7], answering.prompt.next_position)])[0][0]
