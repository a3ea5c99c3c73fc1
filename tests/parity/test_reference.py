"""Every golden case equals transformers: ids, positions, pixels, features, logits and 24 greedy tokens.

Logits are held to 1e-4 of their range, as features are; tokens and positions are equal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl.processing.image import ImageOptions
from qvl.processing.prompt import Prompt
from qvl.runtime.decode import encode_vision, prompt_inputs
from qvl.runtime.engine import Engine
from tests.conftest import CheckpointOf
from tests.golden import load_case, row_sums
from tests.golden.cases import CASES, Case
from tests.parity.support import GREEDY, engine_for, messages_of

TOLERANCE = 1e-4
ONE_LEVEL_TOLERANCE = 1e-3  # of features, where a byte of the pixels is one step off
EXACT_SUMS = 1e-3  # of 1176 numbers each, kept in float32
GREY_LEVEL = 1.01 / 255 / min(ImageOptions().image_std)  # one step of a byte, normalised
RUNS = [
    pytest.param(case, checkpoint, id=f"{case.name}-{checkpoint}") for case in CASES for checkpoint in case.checkpoints
]


@pytest.mark.parametrize(("case", "checkpoint"), RUNS)
def test_equals_the_reference(case: Case, checkpoint: str, checkpoint_variant: CheckpointOf) -> None:
    reference = load_case(case.name)
    engine = engine_for(checkpoint_variant(checkpoint), case)
    prompt = engine.prompt(messages_of(case))

    assert prompt.input_ids.tolist() == reference["input_ids"].tolist()
    assert prompt.position_ids.tolist() == reference["position_ids"].tolist()
    assert prompt.rope_delta == int(reference["rope_delta"])
    for kind in ("image", "video"):
        grids = [list(vision.grid_thw) for vision in prompt.visions if vision.kind == kind]
        assert grids == reference.get(f"{kind}_grid_thw", np.zeros((0, 3))).tolist()
        if grids:
            exact = _check_patches(prompt, kind, reference)
            _check_features(engine, prompt, kind, reference, TOLERANCE if exact else ONE_LEVEL_TOLERANCE)
    _check_logits(engine, prompt, reference)
    answer = engine.generate(prompt, GREEDY)
    assert list(answer.token_ids) == reference["tokens"].tolist()
    assert answer.finish_reason == "length"


def _check_patches(prompt: Prompt, kind: str, reference: dict[str, npt.NDArray[np.float32]]) -> bool:
    """Whether all pixels are equal. Those of pictures have to be."""
    patches = np.concatenate([vision.patches for vision in prompt.visions if vision.kind == kind])
    assert list(patches.shape) == reference[f"{kind}_patches_shape"].tolist()
    differs = np.abs(patches[reference[f"{kind}_patches_index"]] - reference[f"{kind}_patches_rows"])
    sums = np.abs(row_sums(patches) - reference[f"{kind}_patches_sums"]).max()
    if kind == "image":
        assert differs.max() == 0
        assert sums < EXACT_SUMS
    else:
        # Frames are resized in float32 and rounded to bytes. Torch adds up in another order, so that once in a while a
        # value that lies between two bytes goes the other way; both frames of a pair can be hit.
        assert differs.max() <= GREY_LEVEL and np.count_nonzero(differs) <= 1e-3 * differs.size
        assert sums <= 4 * GREY_LEVEL
    return bool(sums < EXACT_SUMS)


def _check_features(
    engine: Engine, prompt: Prompt, kind: str, reference: dict[str, npt.NDArray[np.float32]], tolerance: float
) -> None:
    with paddle.no_grad():
        parts = [
            engine.model.visual(paddle.to_tensor(vision.patches), [vision.grid_thw]).numpy()
            for vision in prompt.visions
            if vision.kind == kind
        ]
    features = np.concatenate(parts)
    scale = np.abs(reference[f"{kind}_features_rows"]).max()
    assert list(features.shape) == reference[f"{kind}_features_shape"].tolist()
    kept = features[reference[f"{kind}_features_index"]]
    np.testing.assert_allclose(kept, reference[f"{kind}_features_rows"], rtol=0, atol=tolerance * scale)
    sums_scale = scale * features.shape[1]
    np.testing.assert_allclose(
        row_sums(features), reference[f"{kind}_features_sums"], rtol=0, atol=tolerance * sums_scale
    )


def _check_logits(engine: Engine, prompt: Prompt, reference: dict[str, npt.NDArray[np.float32]]) -> None:
    with paddle.no_grad():
        inputs = prompt_inputs(engine.config, prompt, encode_vision(engine.model, prompt), last_only=False)
        logits = engine.model(inputs).numpy()
    low, high = reference["logits_range"]
    atol = TOLERANCE * float(high - low)
    np.testing.assert_allclose(logits[-1], reference["last_logits"], rtol=0, atol=atol)
    np.testing.assert_allclose(logits[-8:, ::7], reference["tail_logits"], rtol=0, atol=atol)
    np.testing.assert_allclose([logits.min(), logits.max()], [low, high], rtol=0, atol=atol)
