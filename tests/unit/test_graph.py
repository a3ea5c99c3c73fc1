"""Decode steps that are replayed answer as those that are launched one by one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from qvl.errors import UsageError
from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.messages import Image, Message
from qvl.model.device import Placement
from qvl.ops.cuda_body import Body
from qvl.profile import Profile
from qvl.runtime import graph
from qvl.runtime.decode import Feed
from qvl.runtime.engine import Engine
from qvl.runtime.graph import StepGraphs
from qvl.runtime.records import Sampling
from qvl.runtime.session import Session
from tests.unit.tape import Tape

PLAIN = Sampling(max_new_tokens=8, speculate="off", ignore_eos=True)
WORDS = [Message.of("user", "Say something.")]
OTHER = [Message.of("user", "And what is this, in a few words more than that?")]
ON_GPU = Placement("gpu:0", "bfloat16", "flash")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "model"
    write_checkpoint(folder, replace(TINY, num_hidden_layers=2))
    return folder


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def engine(gpu: Body, tiny: Path, tape: Tape) -> Iterator[Engine]:
    engine = Engine.load(Profile(model=str(tiny), device="cpu"))
    engine._graphs = StepGraphs(engine.model, tape)
    yield engine
    assert engine._graphs.reason == "" and gpu.emulated


def replays(engine: Engine) -> int:
    assert engine._graphs is not None
    return engine._graphs.replays


def plainly(engine: Engine, *talks: Any, sampling: Sampling = PLAIN) -> list[tuple[int, ...]]:
    """Each answer by itself, with no graph."""
    kept, engine._graphs = engine._graphs, None
    answers = [engine.generate(talk, sampling).token_ids for talk in talks]
    engine._graphs = kept
    return answers


def test_an_answer_is_the_same_and_captured_once(engine: Engine, tape: Tape) -> None:
    [wanted] = plainly(engine, WORDS)
    assert engine.generate(WORDS, PLAIN).token_ids == wanted
    # The first token is the prompt's, two steps are plain.
    assert (tape.captures, replays(engine)) == (1, len(wanted) - 3)
    drawn = Sampling(max_new_tokens=8, temperature=1.5, seed=3, repetition_penalty=1.2, speculate="off")
    assert engine.generate(WORDS, drawn).token_ids == plainly(engine, WORDS, sampling=drawn)[0]
    assert tape.captures == 2, "the second answer has a cache of its own"


def test_answers_of_several_lengths_join_and_leave(engine: Engine, tape: Tape) -> None:
    from qvl.runtime.records import Request

    talks = (WORDS, OTHER, WORDS)
    wanted = plainly(engine, *talks)
    lengths = (8, 7, 4)
    requests = [
        Request(i, engine.prompt(talk), replace(PLAIN, max_new_tokens=length))
        for i, (talk, length) in enumerate(zip(talks, lengths, strict=True))
    ]
    finished = {done.key: done.answer for done in engine.serve(iter(requests), batch_size=2)}
    for i, (expected, length) in enumerate(zip(wanted, lengths, strict=True)):
        assert finished[i].token_ids == expected[:length]  # type: ignore[union-attr]
    assert tape.captures >= 1 and replays(engine) >= 4


@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_a_session_that_is_cut_back_and_grows(engine: Engine, tape: Tape, cache_dtype: str) -> None:
    if cache_dtype != "auto":
        engine.cache_dtype = cache_dtype
    session, said = Session(engine), []
    longer = [*WORDS, Message.of("assistant", "No."), Message.of("user", "Why, then? " * 10)]
    for talk, captures in ((WORDS, 1), (WORDS, 1), (longer, 2), (WORDS, 2)):
        said.append(tuple(token for chunk in session.stream(talk, PLAIN) for token in chunk.token_ids))
        assert tape.captures == captures, "of the same memory once, and again when it has grown"
    assert said == plainly(engine, WORDS, WORDS, longer, WORDS)


@pytest.mark.parametrize("cache_dtype", ["bfloat16"])
def test_what_the_host_would_have_to_say_is_not_captured(engine: Engine, tape: Tape, cache_dtype: str) -> None:
    """A cache that the GPU's body does not take: composed ops read on the host how much of it is filled."""
    engine.cache_dtype = cache_dtype
    assert engine.generate(WORDS, PLAIN).token_ids == plainly(engine, WORDS)[0]
    assert (tape.captures, replays(engine)) == (0, 0)


def test_a_cache_whose_growth_was_broken_off_is_another(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = engine.cache(8)
    before = cache.memory  # type: ignore[attr-defined]
    monkeypatch.setattr(paddle, "empty", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.reserve(16)
    assert cache.memory is not before and cache.capacity == 8  # type: ignore[attr-defined]


def test_drafts_go_beside_it(engine: Engine) -> None:
    talk = [Message.of("user", "one two three one two three one two")]
    drafting = replace(PLAIN, max_new_tokens=16, speculate="on")
    assert engine.generate(talk, drafting).token_ids == plainly(engine, talk, sampling=replace(drafting))[0]
    assert plainly(engine, talk, sampling=drafting) == plainly(
        engine, talk, sampling=replace(drafting, speculate="off")
    )


def test_a_longer_context_is_captured_anew(engine: Engine, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("qvl.ops.cuda_body", "qvl.runtime.graph"):
        monkeypatch.setattr(f"{module}.most_keys", lambda keys: -(-keys // 6) * 6)
    long = replace(PLAIN, max_new_tokens=10)
    assert len(engine.prompt(WORDS)) == 48, "steps see 49 to 57 keys, and 54 is a limit"
    assert engine.generate(WORDS, long).token_ids == plainly(engine, WORDS, sampling=long)[0]
    assert tape.captures == 2


def test_graphs_of_what_is_gone_are_dropped(engine: Engine, tape: Tape) -> None:
    assert engine._graphs is not None
    prompt = engine.prompt(WORDS)

    def steps(answering: Any) -> None:
        for _ in range(3):
            engine.step([answering])

    first, second = engine.begin(prompt, PLAIN), engine.begin(prompt, PLAIN)
    steps(first)
    steps(second)
    assert len(engine._graphs._steps) == 2
    first.cache.reserve(first.cache.capacity + 1)
    third = engine.begin(prompt, PLAIN)
    steps(third)
    assert len(engine._graphs._steps) == 2, "the first one's memory is another now"
    for step in engine._graphs._steps.values():
        object.__setattr__(step, "replay", None)  # a tape keeps what a graph has addresses of
    del second
    gc.collect()
    steps(first)
    assert len(engine._graphs._steps) == 2 and tape.captures == 4


def test_what_is_not_one_token_for_each_cache_is_left_alone(engine: Engine, tape: Tape) -> None:
    assert engine._graphs is not None
    answering = engine.begin(engine.prompt(WORDS), PLAIN)
    full = engine.cache(1)
    full.fill(1, "float32")
    for feed in (Feed(answering.cache, [1, 2], 9), Feed(full, [1], 9), Feed(object(), [1], 9)):  # type: ignore[arg-type]
        with engine.computing():
            assert [engine._graphs.logits([feed]) for _ in range(4)] == [None] * 4
    assert tape.captures == 0


def test_a_capture_that_fails_is_told_once_and_answers_go_on(gpu: Body, tiny: Path) -> None:
    def failing(run: Any) -> Any:
        run()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    engine = Engine.load(Profile(model=str(tiny), device="cpu"))
    engine._graphs = StepGraphs(engine.model, failing)
    with pytest.warns(UserWarning, match="launched one by one: a capture failed: operation not permitted when") as told:
        answer = engine.generate(WORDS, PLAIN)
        again = engine.generate(WORDS, PLAIN)
    assert len(told) == 1 and gpu.emulated
    assert answer.token_ids == again.token_ids == plainly(engine, WORDS)[0]


def test_paddle_captures_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Fake:
        def __init__(self, place: Any) -> None:
            seen.append(place)

        def capture_begin(self) -> None:
            seen.append("begin")

        def capture_end(self) -> None:
            seen.append("end")

        def replay(self) -> None:
            seen.append("replay")

    monkeypatch.setattr("paddle.device.cuda.graphs.CUDAGraph", Fake)
    monkeypatch.setattr(paddle, "CUDAPlace", lambda index: f"gpu {index}")
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:2")
    out = paddle.zeros([1])

    def run() -> Any:
        seen.append("run")
        return out

    replay, made = graph.captured(run)
    replay()
    assert made is out and seen == ["gpu 2", "begin", "run", "end", "replay"]
    seen.clear()

    def broken() -> Any:
        raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        graph.captured(broken)
    assert seen == ["gpu 2", "begin", "end"], "or nothing could be captured after it"


def test_why_steps_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph.why_not(Placement("cpu", "float32", "composed")) == "they are for GPUs"
    assert graph.why_not(ON_GPU).startswith("they need the native ops for a GPU: ")
    monkeypatch.setenv(graph.VARIABLE, "0")
    assert graph.why_not(ON_GPU) == "QVL_CUDA_GRAPH=0"
    monkeypatch.setenv(graph.VARIABLE, "off")
    with pytest.raises(UsageError, match="QVL_CUDA_GRAPH=off is not known; 0 or 1"):
        graph.why_not(ON_GPU)


def test_with_the_ops_of_a_gpu_they_are(gpu: Body, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.emulated and graph.why_not(ON_GPU) == ""
    monkeypatch.setattr(graph, "why_not", lambda placement: "" if placement.device == "cpu" else "no")
    assert Engine.load(Profile(model=str(tiny), device="cpu"))._graphs is not None


def test_a_picture_in_front_changes_nothing(engine: Engine) -> None:
    picture = Image(np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8))
    talk = [Message.of("user", picture, "What is this?")]
    assert engine.generate(talk, PLAIN).token_ids == plainly(engine, talk)[0]
    assert replays(engine) == 5
