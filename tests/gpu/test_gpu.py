"""The same model on a GPU: float32 equals the references, 16-bit is no further from float32 than rounding explains.

Skipped where Paddle sees no GPU. Run with `make test EXTRA=gpu` on a machine that has one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.model.device import Placement
from qvl.profile import Profile
from qvl.runtime.decode import encode_vision, prompt_inputs
from qvl.runtime.engine import Engine
from qvl.runtime.session import Session
from tests.golden import load_case
from tests.golden.cases import CASES, Case
from tests.parity.support import GREEDY, messages_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not paddle.device.is_compiled_with_cuda() or paddle.device.cuda.device_count() == 0, reason="no GPU here"
    ),
]
TINY_CASES = [case for case in CASES if case.checkpoints[0] == "tiny"]


def _logits(engine: Engine, case: Case) -> np.ndarray:
    prompt = engine.prompt(messages_of(case))
    with paddle.no_grad():
        inputs = prompt_inputs(engine.config, prompt, encode_vision(engine.model, prompt))
        return np.asarray(engine.model(inputs).numpy()[0])


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
def test_float32_equals_the_reference(case: Case, tiny_checkpoint: Path) -> None:
    profile = Profile(model=str(tiny_checkpoint), device="gpu", dtype="float32", add_vision_id=case.add_vision_id)
    engine = Engine.load(profile)
    reference = load_case(case.name)
    scale = float(np.ptp(reference["logits_range"]))
    np.testing.assert_allclose(_logits(engine, case), reference["last_logits"], rtol=0, atol=1e-4 * scale)
    assert list(engine.generate(messages_of(case), GREEDY).token_ids) == reference["tokens"].tolist()


@pytest.mark.parametrize("case", TINY_CASES[:6], ids=lambda case: case.name)
def test_drafts_batches_and_sessions_answer_as_one_token_at_a_time(case: Case, tiny_checkpoint: Path) -> None:
    profile = Profile(model=str(tiny_checkpoint), device="gpu", dtype="float32", add_vision_id=case.add_vision_id)
    engine, talk = Engine.load(profile), messages_of(case)
    plain = engine.generate(talk, replace(GREEDY, speculate="off")).token_ids
    drafting = replace(GREEDY, speculate="on")
    assert engine.generate(talk, drafting).token_ids == plain
    assert {answer.token_ids for answer in engine.generate_batch([talk] * 3, drafting)} == {plain}
    session = Session(engine)
    for _ in range(2):
        chunks = list(session.stream(talk, drafting))
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == plain
    assert chunks[-1].stats is not None and chunks[-1].stats.computed_tokens == 1


@pytest.fixture(scope="module")
def flash_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FlashAttention takes heads of a multiple of 8; the vision heads of the tiny model have 12."""
    folder = tmp_path_factory.mktemp("flash")
    write_checkpoint(folder, replace(TINY, vision_config=replace(TINY.vision_config, embed_dim=64)))
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
def test_flash_attention_is_as_close_to_float32_as_the_composed_body(
    case: Case, dtype: str, flash_checkpoint: Path
) -> None:
    def engine(wanted: str) -> Engine:
        return Engine.open(Profile(model=str(flash_checkpoint), device="gpu", dtype=wanted))

    exact = _logits(engine("float32"), case)
    errors = {}
    for impl in ("flash", "composed"):
        low = engine(dtype)
        low.placement = Placement(low.placement.device, dtype, impl)
        errors[impl] = float(np.abs(_logits(low, case) - exact).max())
    assert errors["flash"] <= 2 * errors["composed"]


@pytest.mark.parametrize(("width", "least"), [("int8", 0.99), ("int4", 0.8)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_quantised_layers_move_the_logits_little(width: str, least: float, dtype: str, tiny_checkpoint: Path) -> None:
    """By Paddle's weight-only products. The tiny model has 64 inputs a layer, one group of int4."""
    plain, quantised = (
        Engine.load(Profile(model=str(tiny_checkpoint), device="gpu", dtype=dtype, quantize=asked))
        for asked in ("none", width)
    )
    wanted, got = _logits(plain, TINY_CASES[0]), _logits(quantised, TINY_CASES[0])
    assert float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted)) > least
    assert np.abs(got - wanted).max() > 0
    assert len(quantised.generate(messages_of(TINY_CASES[0]), GREEDY).token_ids) > 0
