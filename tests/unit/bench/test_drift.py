"""How far quantised weights move a model: nothing for the same weights, and what a hand would compute otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qvl.bench.drift import answer_logits, drift, main, pictures, references
from qvl.messages import Message
from qvl.profile import Profile
from qvl.runtime.engine import Engine

Folder = Callable[[str], Path]


def engine(folder: Path, quantize: str = "none") -> Engine:
    return Engine.load(Profile(model=str(folder), device="cpu", quantize=quantize))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def talks() -> list[list[Message]]:
    return [*pictures(3, 84), [Message.of("user", "Only words.")]]


def test_logits_of_an_answer_are_those_it_was_drawn_from(tiny_checkpoint: Path, talks: list[list[Message]]) -> None:
    model = engine(tiny_checkpoint)
    for made in references(model, talks, 9):
        assert made.logits.shape == (len(made.answer), model.config.vocab_size)
        np.testing.assert_array_equal(made.logits.argmax(axis=1), made.answer)
        np.testing.assert_allclose(made.logits[0], model.next_logits(made.prompt), rtol=1e-4, atol=1e-4)


def test_the_same_weights_do_not_drift(tiny_checkpoint: Path, talks: list[list[Message]]) -> None:
    model = engine(tiny_checkpoint)
    found = drift(model, "none", references(model, talks, 9))
    assert found.perplexity == found.reference_perplexity and found.divergence == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1 and found.cosine == pytest.approx(1)


def test_other_weights_drift_as_computed_by_hand(checkpoint_variant: Folder, talks: list[list[Message]]) -> None:
    one, other = engine(checkpoint_variant("tiny")), engine(checkpoint_variant("tiny"), "int4")
    wanted = references(one, talks, 5)
    found = drift(other, "int4", wanted)
    assert found.tokens == sum(len(made.answer) for made in wanted)
    likelihood, divergence, cosine = [], [], []
    for made in wanted:
        after = answer_logits(other, made.prompt, made.answer).astype(np.float64)
        cosine += [np.corrcoef(p, q)[0, 1] for p, q in zip(made.logits, after, strict=True)]
        for token, p, q in zip(made.answer, made.logits.astype(np.float64), after, strict=True):
            p, q = (np.exp(x) / np.exp(x).sum() for x in (p, q))
            likelihood.append(q[token])
            divergence.append(float((p * np.log(p / q)).sum()))
    assert found.perplexity == pytest.approx(np.exp(-np.mean(np.log(likelihood))), rel=1e-4)
    assert found.divergence == pytest.approx(np.mean(divergence), rel=1e-3) and found.divergence > 1e-6
    assert found.cosine == pytest.approx(np.mean(cosine), rel=1e-4) and found.cosine < 0.99


def test_the_program(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drift.json"
    few = ["--questions", "2", "--new-tokens", "4", "--picture", "84"]
    main(["--model", str(tiny_checkpoint), *few, "--json", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6 and said[2].startswith("| as stored | ")
    found = json.loads(out.read_text())
    assert [one["width"] for one in found] == ["bf16", "int8", "int4"]
    assert found[0]["divergence"] < found[1]["divergence"] < found[2]["divergence"]
