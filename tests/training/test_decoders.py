"""Processes that decode beside a run give what the run itself would have read, and end with it."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from qvl.errors import QvlError
from qvl.processing.prompt import Example
from qvl.training.decoders import decoders
from qvl.training.examples import ExampleSource
from qvl.training.finetune import _WORTH_PROCESSES
from qvl.training.formats import DataError
from tests.training.runs import LORA, finetune, losses, noise, write_data
from tests.training.test_runs import laid_out

pytestmark = pytest.mark.slow  # programs are started


def equal(one: Example, other: Example) -> bool:
    parts = [(one.labels, other.labels), (one.prompt.input_ids, other.prompt.input_ids)]
    parts += [(one.prompt.position_ids, other.prompt.position_ids)]
    pairs = zip(one.prompt.visions, other.prompt.visions, strict=True)
    return all(np.array_equal(*part) for part in parts) and all(
        np.array_equal(mine.patches, its.patches) and mine.grid_thw == its.grid_thw for mine, its in pairs
    )


@pytest.fixture
def source(tmp_path: Path, tiny_checkpoint: Path) -> ExampleSource:
    write_data(tmp_path, "data.json", ("one", "two", "three", "four"))
    run = laid_out(tmp_path / "data.json", tiny_checkpoint, tmp_path / "out")
    return ExampleSource(run.dataset, run.processor, run.prepared, cache_bytes=1 << 20)


def test_they_read_what_the_run_would_read_itself_for_many_threads_at_a_time(source: ExampleSource) -> None:
    alone = [source.read(number) for number in range(4)]
    numbers = [0, 1, 2, 3] * 5
    with decoders(source.read, 2) as read, ThreadPoolExecutor(4) as threads:
        assert all(
            equal(example, alone[number]) for number, example in zip(numbers, threads.map(read, numbers), strict=True)
        )
        source.decode = read
        assert equal(source[2], alone[2]) and source[2] is source[2], "the run keeps what it was given"
        assert source[2].prompt.visions[0].patches.flags.writeable


def test_what_is_wrong_with_a_sample_is_said_as_the_run_would_say_it(source: ExampleSource, tmp_path: Path) -> None:
    noise(1).resize((224, 168)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    with decoders(source.read, 1) as read:
        for number in (1, 2):
            with pytest.raises(DataError) as own:
                source.read(number)
            with pytest.raises(DataError) as told:
                read(number)
            assert str(told.value) == str(own.value)
        with pytest.raises(RuntimeError, match="sample 99: IndexError"):
            read(99)
        assert equal(read(3), source.read(3)), "it goes on"


def children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "qvl.training.decoders" in " ".join(child.cmdline())]


def test_they_leave_signals_to_the_run_and_one_that_dies_ends_it(source: ExampleSource) -> None:
    with decoders(source.read, 1) as read:
        read(0)
        (process,) = children()
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        read(1)
        process.kill()
        with pytest.raises(QvlError, match="a process that decodes samples has ended"):
            read(2)
    assert not children()


def test_they_end_with_a_run_that_is_gone(source: ExampleSource) -> None:
    with decoders(source.read, 1) as read:
        read(0)
        (process,) = children()
        pipe = read._all[0].stdin
        assert pipe is not None
        pipe.close()  # as the system does for a run that was killed
        assert not psutil.wait_procs([process], timeout=20)[1]


def test_a_run_of_many_batches_learns_the_same_as_one_that_decodes_itself(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """FAST takes two samples at a time, so that these are as many as processes are started for."""
    long = ["--set", "training.epochs=25"]
    for workers in ("0", "2"):
        chosen = [*LORA, *long, "--set", f"training.workers={workers}"]
        done = finetune(data, tmp_path / workers, tiny_checkpoint, *chosen)
        assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "0")) * 2 >= _WORTH_PROCESSES
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
