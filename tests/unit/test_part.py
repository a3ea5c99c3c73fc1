"""What each part of a split model holds: together the whole model, and of the files no more than that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qvl.errors import UsageError
from qvl.model.config import ModelConfig
from qvl.model.part import Part, fits
from qvl.model.shapes import FULL_2B, FULL_7B, FULL_72B, TINY, parameter_shapes
from qvl.model.weights import load_model
from qvl.runtime.memory import weight_bytes

SHAPES = {"tiny": TINY, "2B": FULL_2B, "7B": FULL_7B, "72B": FULL_72B, "odd words": replace(TINY, vocab_size=1023)}
SIZES = [(name, size) for name, config in SHAPES.items() for size in (2, 3, 4, 8, 16) if fits(config, size)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_parts_are_the_whole(name: str, size: int) -> None:
    config = SHAPES[name]
    copies = max(1, size // config.num_key_value_heads)  # of each key head, where there are fewer than parts
    for parameter, shape in parameter_shapes(config).items():
        cuts = [Part(rank, size).cut(parameter, config) for rank in range(size)]
        if parameter.startswith("visual.") or "norm" in parameter:
            assert set(cuts) == {None}
            continue
        layer = parameter.split(".")[-2]
        paddle_shape = shape if len(shape) == 1 or layer == "embed_tokens" else shape[::-1]
        held: Counter[int] = Counter()
        axes = set()
        for cut in cuts:
            assert cut is not None and cut.whole == paddle_shape[cut.axis] and cut.start < cut.stop
            held.update(range(cut.start, cut.stop))
            axes.add(cut.axis)
        expected = copies if layer in ("k_proj", "v_proj") else 1
        (axis,) = axes
        assert sorted(held) == list(range(paddle_shape[axis])) and set(held.values()) == {expected}


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_query_heads_are_where_their_key_head_is(name: str, size: int) -> None:
    config = SHAPES[name]
    group = config.num_attention_heads // config.num_key_value_heads
    for rank in range(size):
        part = Part(rank, size)
        queries, keys = part.query_heads(config), part.key_heads(config)
        assert [head // group for head in queries] == [key for key in keys for _ in range(len(queries) // len(keys))]


@pytest.mark.parametrize(
    ("config", "size", "would"), [(FULL_2B, 3, "2, 4"), (FULL_7B, 8, "2, 4"), (FULL_72B, 5, "2, 4, 8")]
)
def test_other_numbers_are_refused_with_those_that_would_do(config: ModelConfig, size: int, would: str) -> None:
    with pytest.raises(UsageError, match=rf"cannot be split in {size} equal parts; {would}.* would do"):
        Part(0, size).check(config)
    Part(0, 2).check(config)


@pytest.mark.parametrize("variant", ["tiny", "untied", "bfloat16", "float16", "paddle-untied", "paddle-sharded"])
@pytest.mark.parametrize("size", [2, 4])
def test_a_part_is_read_as_a_stretch_of_the_whole(
    checkpoint_variant: Callable[[str], Path], variant: str, size: int
) -> None:
    folder = checkpoint_variant(variant)
    config = ModelConfig.from_folder(folder)
    whole = {name: parameter.numpy() for name, parameter in load_model(folder, config).named_parameters()}
    for rank in range(size):
        part = Part(rank, size)
        read = dict(load_model(folder, config, part=part).named_parameters())
        assert read.keys() == whole.keys()
        for name, parameter in read.items():
            cut = part.cut(name, config)
            expected = whole[name] if cut is None else np.take(whole[name], range(cut.start, cut.stop), cut.axis)
            np.testing.assert_array_equal(parameter.numpy(), expected, err_msg=name)
        held = sum(parameter.size * 4 for parameter in read.values())
        assert held <= weight_bytes(config, "float32", parts=size) < 1.01 * held
