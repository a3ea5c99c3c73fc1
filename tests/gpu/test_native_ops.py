"""The native ops of a GPU under Paddle, and decode steps in CUDA graphs. Skipped where Paddle sees no GPU.

Run as test_gpu.py is, after `qvl doctor --build`. The kernels by themselves are tested in kernels/, without Paddle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from qvl.ops import cuda, native
from qvl.profile import Profile
from qvl.runtime import graph
from qvl.runtime.engine import Engine
from tests.golden.cases import Case
from tests.gpu.test_gpu import TINY_CASES, _logits, flash_checkpoint
from tests.parity.support import GREEDY, messages_of

__all__ = ["flash_checkpoint"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not paddle.device.is_compiled_with_cuda() or paddle.device.cuda.device_count() == 0, reason="no GPU here"
    ),
]
PLAIN = replace(GREEDY, speculate="off")


def _engine(folder: Path, dtype: str, quantize: str = "none") -> Engine:
    return Engine.load(Profile(model=str(folder), device="gpu", dtype=dtype, quantize=quantize))


def test_they_are_there() -> None:
    """Or all else here would compare composed ops with themselves."""
    assert cuda.installed().reason == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", TINY_CASES[:6], ids=lambda case: case.name)
def test_they_are_as_close_to_float32_as_the_composed_ones(case: Case, dtype: str, flash_checkpoint: Path) -> None:
    with native.using("composed"):
        exact = _logits(_engine(flash_checkpoint, "float32"), case)
        composed = _logits(_engine(flash_checkpoint, dtype), case)
    found = _logits(_engine(flash_checkpoint, dtype), case)
    assert np.abs(found - exact).max() <= 2 * np.abs(composed - exact).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", TINY_CASES[:6], ids=lambda case: case.name)
def test_replayed_steps_answer_as_plain_ones(
    case: Case, dtype: str, flash_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = messages_of(case)
    replayed = _engine(flash_checkpoint, dtype)
    found = [replayed.generate(talk, PLAIN).token_ids for _ in range(2)]
    together = [answer.token_ids for answer in replayed.generate_batch([talk] * 3, PLAIN)]
    assert replayed._graphs is not None and replayed._graphs.reason == "" and replayed._graphs.replays > 0
    monkeypatch.setenv(graph.VARIABLE, "0")
    plain = _engine(flash_checkpoint, dtype)
    assert plain._graphs is None
    assert found == [plain.generate(talk, PLAIN).token_ids] * 2
    assert together == [answer.token_ids for answer in plain.generate_batch([talk] * 3, PLAIN)]


@pytest.mark.parametrize(("width", "least"), [("int8", 0.99), ("int4", 0.8)])
def test_packed_weights_move_the_logits_little(width: str, least: float, flash_checkpoint: Path) -> None:
    plain, packed = (_engine(flash_checkpoint, "bfloat16", asked) for asked in ("none", width))
    wanted, got = _logits(plain, TINY_CASES[0]), _logits(packed, TINY_CASES[0])
    assert float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted)) > least
    assert len(packed.generate(messages_of(TINY_CASES[0]), PLAIN).token_ids) > 0
