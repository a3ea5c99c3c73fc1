"""How far quantised weights move what a model says: `python -m qvl.bench.drift --model DIR`.

The model as it is stored answers questions; then every width is given the same questions and answers, and asked how
likely it finds each token of them. Nothing has to be known of right answers, so it works on any checkpoint.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.messages import Image, Message  # noqa: E402
from qvl.processing.prompt import Prompt  # noqa: E402
from qvl.runtime.decode import encode_visions, prompt_inputs  # noqa: E402
from qvl.runtime.engine import Engine  # noqa: E402

WIDTHS = ("bf16", "int8", "int4")
_QUESTIONS = ("Describe this picture.", "What colours are in it?", "What could this be?", "Write a line about it.")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """A prompt, the answer of the model as it is stored, and the logits before each of its tokens, [tokens, words]."""

    prompt: Prompt
    answer: tuple[int, ...]
    logits: Floats


@dataclass(frozen=True)
class Drift:
    """Over all tokens of all answers.

    perplexity: of the answers, by the quantised model; reference_perplexity: by the model itself. divergence: mean
    Kullback-Leibler divergence of its distributions from the model's, in nats. agreement: share of the places at which
    both find the same token likeliest. cosine: mean of that between logits about their mean.
    """

    width: str
    tokens: int
    perplexity: float
    reference_perplexity: float
    divergence: float
    agreement: float
    cosine: float


def references(engine: Engine, conversations: Iterable[Sequence[Message]], new_tokens: int) -> list[Reference]:
    """The likeliest answer to each, of at most so many tokens."""
    sampling = engine.sampling(temperature=0.0, max_new_tokens=new_tokens, speculate="off")
    made = []
    for conversation in conversations:
        prompt = engine.prompt(conversation)
        answer = engine.generate(prompt, sampling).token_ids
        made.append(Reference(prompt, answer, answer_logits(engine, prompt, answer)))
    return made


def answer_logits(engine: Engine, prompt: Prompt, answer: Sequence[int]) -> Floats:
    """What the model gives before each token of an answer, float32 [tokens, vocab_size], in one pass."""
    fed = np.asarray(answer[:-1], np.int64)
    positions = np.broadcast_to(prompt.next_position + np.arange(len(fed), dtype=np.int64), (3, len(fed)))
    whole = replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, fed]),
        position_ids=np.concatenate([prompt.position_ids, positions], axis=1),
        next_position=prompt.next_position + len(fed),
    )
    rows = np.arange(len(prompt) - 1, len(whole), dtype=np.int64)
    with engine.computing():
        features, _ = encode_visions(engine.model, whole.visions, engine.features)
        inputs = replace(
            prompt_inputs(engine.config, whole, features, last_only=False), logits_index=paddle.to_tensor(rows)
        )
        logits: Floats = engine.model(inputs).numpy()
    return logits


def drift(engine: Engine, width: str, wanted: Sequence[Reference]) -> Drift:
    """engine: with the quantised weights of the model that the references are of."""
    figures: list[tuple[Floats, ...]] = []
    for reference in wanted:
        logits = answer_logits(engine, reference.prompt, reference.answer)
        before, after = _log_softmax(reference.logits), _log_softmax(logits)
        chosen = (np.arange(len(reference.answer)), np.asarray(reference.answer))
        figures.append(
            (
                -after[chosen],
                -before[chosen],
                (np.exp(before) * (before - after)).sum(axis=1),
                (logits.argmax(axis=1) == reference.logits.argmax(axis=1)).astype(np.float32),
                _cosine(logits, reference.logits),
            )
        )
    after, before, divergence, agreement, cosine = (np.concatenate(column) for column in zip(*figures, strict=True))
    return Drift(
        width,
        len(after),
        float(np.exp(after.mean())),
        float(np.exp(before.mean())),
        float(divergence.mean()),
        float(agreement.mean()),
        float(cosine.mean()),
    )


def measure(model: str, conversations: Sequence[Sequence[Message]], new_tokens: int) -> Iterator[Drift]:
    """Width by width; at no time are two models in memory."""
    engine = Engine.load("demo" if model == "demo" else "2b", model=model, device="cpu")
    wanted = references(engine, conversations, new_tokens)
    for width in WIDTHS:
        del engine
        gc.collect()
        engine = Engine.load("demo" if model == "demo" else "2b", model=model, device="cpu", quantize=width)
        yield drift(engine, width, wanted)


def pictures(count: int, side: int) -> Iterator[list[Message]]:
    """Questions about made pictures: blocks of colour, each picture another."""
    for number in range(count):
        rng = np.random.default_rng([*b"drift", number])
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(side // 4, axis=0).repeat(side // 4, axis=1)
        yield [Message.of("user", Image(blocks), _QUESTIONS[number % len(_QUESTIONS)])]


def markdown(drifts: Iterable[Drift]) -> str:
    """A row a width."""
    rows = ["| weights | perplexity | divergence | same token | cosine |", "|---|---:|---:|---:|---:|"]
    for one in drifts:
        if len(rows) == 2:
            rows.append(f"| as stored | {one.reference_perplexity:.4f} | 0 | 100 % | 1 |")
        rows.append(
            f"| {one.width} | {one.perplexity:.4f} | {one.divergence:.2e} | {one.agreement:.1%} | {one.cosine:.6f} |"
        )
    return "\n".join(rows)


def _log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal


def _cosine(one: Floats, other: Floats) -> Floats:
    one, other = (x - x.mean(axis=1, keepdims=True) for x in (one, other))
    cosine: Floats = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return cosine


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m qvl.bench.drift", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a name, unquantised")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32, help="at most, of each answer")
    parser.add_argument("--picture", type=int, default=448, metavar="SIDE", help="of each, in pixels")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(arguments)
    found = list(measure(options.model, list(pictures(options.questions, options.picture)), options.new_tokens))
    print(markdown(found))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
