"""QVL_OPS: what it takes, what it refuses, and what is said of each op."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.errors import DeviceError, UsageError
from qvl.ops import status
from qvl.runtime.engine import Engine


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QVL_OPS", raising=False)


def test_without_a_build_every_op_is_composed_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find_build", lambda: "no compiler was here")
    found = status.status()
    assert (found.requested, found.built, found.instructions) == ("auto", False, ())
    assert {op.name for op in found.ops} == set(status.NAMES)
    assert all(op.body == "composed" and op.reason == found.reason and op.reason for op in found.ops)


def test_attention_on_a_gpu_is_flash_attention_and_lacks_nothing() -> None:
    bodies = {op.name: (op.body, op.reason) for op in status.status("flash").ops}
    assert bodies["varlen_attention"] == ("flash", "")
    assert bodies["rms_norm"][0] in ("composed", "native")


def test_every_name_is_an_op() -> None:
    from qvl import ops

    packed = {"linear": ops.linear.linear, "mlp": ops.mlp.mlp}
    found = [packed.get(name) or getattr(ops, name) for name in status.NAMES]
    assert all(map(callable, found))


@pytest.mark.parametrize("word", ["nativ", "NATIVE", "fast", " "])
def test_another_word_is_refused_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("QVL_OPS", word)
    for ask in (status.requested, status.check, status.status):
        with pytest.raises(UsageError, match="auto, native or composed"):
            ask()


@pytest.mark.parametrize("word", ["", "auto", "composed"])
def test_what_can_be_had_is_had(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("QVL_OPS", word)
    status.check()
    assert status.status().requested == (word or "auto")


def test_a_model_does_not_open_without_the_native_ops_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.setattr(status, "find_build", lambda: "no compiler was here")
    monkeypatch.setenv("QVL_OPS", "native")
    with pytest.raises(DeviceError, match="QVL_OPS=native: no compiler was here"):
        Engine.open("demo", model=tiny_checkpoint)
    monkeypatch.setenv("QVL_OPS", "composed")
    assert Engine.open("demo", model=tiny_checkpoint).placement.device == "cpu"


def test_a_build_runs_what_it_has_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find_build", lambda: status.Build(("AVX2",), {"quick_gelu": "not written yet"}))
    found = status.status()
    assert (found.built, found.reason, found.instructions) == (True, "", ("AVX2",))
    bodies = {op.name: (op.body, op.reason) for op in found.ops}
    assert bodies["rms_norm"] == ("native", "")
    assert bodies["quick_gelu"] == ("composed", "not written yet")
    monkeypatch.setenv("QVL_OPS", "native")
    status.check()
    monkeypatch.setenv("QVL_OPS", "composed")
    assert {op.body for op in status.status().ops} == {"composed"}
    assert all("QVL_OPS=composed" in op.reason for op in status.status().ops)


def test_the_build_that_is_here_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl.ops import native

    built = status.find_build()
    monkeypatch.setattr(native, "_loaded", native.Loaded(None, "no compiler was here"))
    assert status.find_build() == "no compiler was here"
    if not isinstance(built, str):
        assert built.instructions[0] == "portable" and set(built.lacking) <= set(status.NAMES)
