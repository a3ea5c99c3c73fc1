"""A language model that several processes share answers as one that is whole, and ends as a whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from qvl.errors import QvlError
from qvl.hub.random_checkpoint import TINY, write_checkpoint
from qvl.messages import Image, Message
from qvl.model.adapter import linear_shapes, write_adapter
from qvl.model.adapter_config import AdapterConfig
from qvl.model.weights import empty_model
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling
from qvl.runtime.session import Session
from qvl.runtime.split.model import SplitModel

pytestmark = pytest.mark.slow  # programs are started

SHORT = Sampling(max_new_tokens=12)
# 64 heads on 8 key heads, as the 72B has, and as many columns for each.
RATIOS_OF_72B = replace(
    TINY,
    hidden_size=1024,
    num_hidden_layers=2,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=3696,
    tie_word_embeddings=False,
    vision_config=replace(TINY.vision_config, hidden_size=1024),
)


def talk(seed: int, question: str = "What is this?", pictures: int = 1) -> list[Message]:
    shots = [np.random.default_rng(seed + n).integers(0, 256, (84, 112, 3), np.uint8) for n in range(pictures)]
    return [Message.of("user", *(Image(shot) for shot in shots), question)]


def whole_and_split(folder: Path, size: int, **keys: object) -> tuple[Engine, Engine]:
    profile = Profile(model=str(folder), device="cpu").revised(keys, "test")
    return Engine.load(profile), Engine.load(profile.revised({"tensor_parallel": size}, "test"))


@pytest.fixture(scope="module")
def engines(tiny_checkpoint: Path) -> tuple[Engine, Engine]:
    return whole_and_split(tiny_checkpoint, 2)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qvl.cli", *arguments]


def workers() -> list[psutil.Process]:
    me = psutil.Process()
    return [child for child in me.children(recursive=True) if "qvl.runtime.split.worker" in " ".join(child.cmdline())]


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture(scope="module", params=["tiny 2", "untied 4", "odd words 2", "72B 4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    name, _, size = str(request.param).rpartition(" ")
    config = {
        "tiny": TINY,
        "untied": replace(TINY, tie_word_embeddings=False),
        "odd words": replace(TINY, vocab_size=1023),
        "72B": RATIOS_OF_72B,
    }[name]
    folder = tmp_path_factory.mktemp("split") / "model"
    write_checkpoint(folder, config, seed=5)
    return whole_and_split(folder, int(size))


def test_logits_and_answers_equal_those_of_one_process(pair: tuple[Engine, Engine]) -> None:
    whole, split = pair
    for conversation in (talk(1), talk(2, "Compare.", pictures=3), [Message.of("user", "Only words.")]):
        expected, got = whole.next_logits(conversation), split.next_logits(conversation)
        assert np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)
        assert split.generate(conversation, SHORT).token_ids == whole.generate(conversation, SHORT).token_ids


def test_batches_sessions_and_drafts_equal_those_of_one_process(engines: tuple[Engine, Engine]) -> None:
    whole, split = engines
    many = [talk(seed) for seed in range(3)] + [[Message.of("user", "one two one two one two one")]]
    drafted = replace(SHORT, max_new_tokens=40, speculate="on")
    for sampling in (SHORT, replace(SHORT, temperature=0.8, seed=3), drafted):
        expected = [answer.token_ids for answer in whole.generate_batch(many, sampling)]
        assert [answer.token_ids for answer in split.generate_batch(many, sampling)] == expected
    session, conversation = Session(split), talk(7)
    for question in ("And?", "Say more.", "Why?"):
        chunks = list(session.stream(conversation, SHORT))
        expected_tokens = whole.generate(conversation, SHORT).token_ids
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected_tokens
        stats = chunks[-1].stats
        assert stats is not None and (stats.reused_tokens > 10) == (question != "And?")
        conversation = [*conversation, Message.of("assistant", "Yes."), Message.of("user", question)]


def test_an_int8_cache_is_split_too(tiny_checkpoint: Path) -> None:
    whole, split = whole_and_split(tiny_checkpoint, 2, cache_dtype="int8")
    assert split.generate(talk(4), SHORT).token_ids == whole.generate(talk(4), SHORT).token_ids


def test_a_cache_is_filled_by_all_workers(engines: tuple[Engine, Engine]) -> None:
    """As `qvl bench` does, which then times what comes behind."""
    _, split = engines
    cache, prompt = split.cache(60), split.prompt([Message.of("user", "Hello")])
    cache.fill(5, "float32")
    assert len(cache) == 5
    *_, last = split.chunks(split.begin(prompt, SHORT, cache))
    assert last.stats is not None and last.stats.reused_tokens == 5 and len(cache) >= len(prompt)
    with pytest.raises(QvlError, match="the cache has room for 2 tokens, 3 were given"):
        split.cache(2).fill(3, "float32")


def test_memory_set_aside_for_others_counts_by_the_part_of_a_worker(engines: tuple[Engine, Engine]) -> None:
    whole, split = (engine.cache(100) for engine in engines)
    assert whole.untouched == 2 * split.untouched > 0
    for cache in (whole, split):
        cache.fill(25, "float32")
    assert whole.untouched == 2 * split.untouched == 75 * engines[0].cache(1).untouched


def test_an_answer_that_was_interrupted_leaves_a_model_that_answers(engines: tuple[Engine, Engine]) -> None:
    whole, split = engines
    for delay in (0.0, 0.002, 0.01, 0.03):
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                split.generate(talk(11), replace(SHORT, max_new_tokens=60, ignore_eos=True))
        assert split.generate(talk(3), SHORT).token_ids == whole.generate(talk(3), SHORT).token_ids


def test_caches_that_nobody_needs_are_forgotten(engines: tuple[Engine, Engine]) -> None:
    _, split = engines
    split.generate(talk(1), SHORT)
    held = split.body
    assert isinstance(held, SplitModel) and held._dropped  # told with the next call
    before = len(held._dropped)
    split.next_logits(talk(1))
    assert len(held._dropped) < before
    split.generate(talk(1), SHORT)
    assert held._dropped
    held.free_memory()  # which counts what they would have taken
    assert not held._dropped


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_a_worker_ends_all_with_its_name(tiny_checkpoint: Path, rank: int) -> None:
    before = workers()
    _, split = whole_and_split(tiny_checkpoint, 2)
    own = sorted(
        (process for process in workers() if process not in before), key=lambda p: p.environ()["_QVL_SPLIT_RANK"]
    )
    assert len(own) == 2
    threading.Timer(0.3, own[rank].kill).start()
    with pytest.raises(QvlError, match=rf"part {rank} was ended by SIGKILL; is there enough memory\?"):
        for seed in range(10_000):
            split.generate(talk(seed), SHORT)
    assert gone(own)
    with pytest.raises(QvlError, match=f"part {rank} was ended"):
        split.generate(talk(0), SHORT)


def test_an_error_that_all_workers_find_is_told_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    before = workers()
    with pytest.raises(QvlError, match=r"^[^:]*model\.safetensors: truncated"):
        whole_and_split(folder, 2)
    assert gone([process for process in workers() if process not in before])


def test_workers_end_with_the_engine_that_has_them(tiny_checkpoint: Path) -> None:
    before = workers()
    _, split = whole_and_split(tiny_checkpoint, 2)
    own = [process for process in workers() if process not in before]
    assert len(own) == 2
    del split
    assert gone(own)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor_parallel": 3}, "cannot be split in 3 equal parts; 2, 4 would do"),
        ({"tensor_parallel": 2, "quantize": "int8"}, "quantised weights stay on one device"),
        ({"devices": "0,1", "device": "cpu"}, "leave out one of them"),
        ({"devices": "0,1", "device": "gpu:2"}, "begins with gpu:0, and --device is gpu:2; leave out one of them"),
        ({"devices": "0,0", "device": "gpu"}, "has one of them twice|CPU build"),
    ],
)
def test_what_cannot_be_split_is_refused(tiny_checkpoint: Path, keys: dict[str, object], message: str) -> None:
    device = {"device": "cpu"} | keys
    with pytest.raises(QvlError, match=message):
        Engine.load(Profile(model=str(tiny_checkpoint)).revised(device, "test"))


def test_an_adapter_is_split_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On every kind of layer, the vision tower's among them."""
    shapes = linear_shapes(empty_model(TINY, "float32"))
    rng = np.random.default_rng(1)
    factors = {
        name: (
            rng.normal(0, 0.2, (4, inputs)).astype(np.float32),
            rng.normal(0, 0.2, (outputs, 4)).astype(np.float32),
        )
        for name, (outputs, inputs) in shapes.items()
    }
    config = AdapterConfig(rank=4, alpha=8.0, target_modules=tuple(sorted(shapes)))
    write_adapter(tmp_path / "adapter", config, factors)
    profile = Profile(model=str(tiny_checkpoint), device="cpu")
    whole = Engine.load(profile, adapters=[str(tmp_path / "adapter")])
    split = Engine.load(profile.revised({"tensor_parallel": 4}, "test"), adapters=[str(tmp_path / "adapter")])
    expected, got = whole.next_logits(talk(1)), split.next_logits(talk(1))
    assert np.abs(got - expected).max() <= 1e-5 * np.ptp(expected)
    assert np.abs(expected - Engine.load(profile).next_logits(talk(1))).max() > 0.1


@pytest.fixture
def line(tiny_checkpoint: Path) -> list[str]:
    arguments = ["infer", "--model", str(tiny_checkpoint), "-p", "Hi", "--device", "cpu", "--set", "tensor_parallel=2"]
    return command(*arguments)


def test_the_program_answers_the_same(line: list[str], tiny_checkpoint: Path) -> None:
    said = [
        json.loads(subprocess.run([*arguments, "--json"], capture_output=True, text=True, check=True).stdout)
        for arguments in (line, command("infer", "--model", str(tiny_checkpoint), "-p", "Hi", "--device", "cpu"))
    ]
    assert said[0]["text"] == said[1]["text"] and said[0]["finish_reason"] == said[1]["finish_reason"]


@pytest.fixture
def running(line: list[str]) -> Iterator[subprocess.Popen[str]]:
    arguments = [*line, "--max-new-tokens", "4000", "--ignore-eos"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        yield program
        program.kill()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(running: subprocess.Popen[str], kind: signal.Signals) -> None:
    assert running.stdout is not None
    running.stdout.read(1)  # it answers
    children = psutil.Process(running.pid).children()
    assert len(children) == 2
    running.send_signal(kind)
    begun = time.monotonic()
    code = running.wait(timeout=20)
    assert time.monotonic() - begun < 8
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kind] or code == -kind
    assert gone(children)
