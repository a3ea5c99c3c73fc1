"""Which process of several is said to have failed, by what they and the launcher leave behind."""

from __future__ import annotations

import signal
from pathlib import Path

import paddle
import pytest

from qvl.cli.processes import ProcessError, Processes, _raise_failure
from qvl.errors import DeviceError
from qvl.training.run import check_gpu_count
from qvl.training.stopping import Outcome, StoppedError

SAID = "Container rank {} status failed cmd ['python'] code {} log logs/workerlog.{}\n"


def said(*ended: tuple[int, int]) -> str:
    return "".join(SAID.format(rank, code, rank) for rank, code in ended)


def blamed(folder: Path, outcomes: list[Outcome], said: str, code: int = 1) -> str:
    with pytest.raises(ProcessError) as raised:
        _raise_failure(Processes(3, None, folder), outcomes, said, code, [])
    return str(raised.value).replace(str(folder), "logs")


def test_an_error_with_words_comes_before_those_that_say_nothing(tmp_path: Path) -> None:
    """The launcher ends the others, and does not always say so."""
    outcomes = [Outcome(1, 1, "ValueError: no such thing", local=1, when=5.0)]
    for others in (said((1, 1)), said((0, -signal.SIGTERM), (1, 1), (2, -signal.SIGTERM))):
        assert blamed(tmp_path, outcomes, others) == "process 1 (logs/workerlog.1): ValueError: no such thing"


@pytest.mark.parametrize("message", ["RuntimeError: Connection closed by peer", "gloo: read error"])
def test_losing_another_process_is_not_what_went_wrong(tmp_path: Path, message: str) -> None:
    outcomes = [Outcome(0, 1, message, local=0), Outcome(2, 1, message, local=2)]
    hint = "process 1 (logs/workerlog.1): {}; is there enough memory?"
    assert blamed(tmp_path, outcomes, said((0, 1))) == hint.format("ended without a word")
    assert blamed(tmp_path, outcomes, said((0, 1), (1, -signal.SIGKILL))) == hint.format("was ended by SIGKILL")


def test_one_that_was_killed_comes_before_words(tmp_path: Path) -> None:
    outcomes = [Outcome(0, 1, "ValueError: half a batch")]
    assert "process 2 (logs/workerlog.2): was ended by SIGSEGV" in blamed(
        tmp_path, outcomes, said((2, -signal.SIGSEGV))
    )


def test_what_was_foreseen_comes_first_and_a_stop_is_none(tmp_path: Path) -> None:
    foreseen = Outcome(2, 3, "no such file", foreseen=True, local=2)
    assert blamed(tmp_path, [Outcome(0, 1, "ValueError"), foreseen], said((0, 1), (2, 3))).endswith("no such file")
    stopped = [Outcome(rank, 143, stopped_by=signal.SIGTERM, local=rank) for rank in range(3)]
    with pytest.raises(StoppedError):
        _raise_failure(Processes(3, None, tmp_path), stopped, "", 1, [])
    _raise_failure(Processes(3, None, tmp_path), [Outcome(rank, 0, local=rank) for rank in range(3)], "", 0, [])


@pytest.mark.parametrize(("device", "gpus", "fits"), [("auto", 2, False), ("gpu", 0, False), ("auto", 0, True)])
def test_processes_need_a_gpu_each(device: str, gpus: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: gpus)
    check_gpu_count("cpu", 8)
    if fits:
        check_gpu_count(device, 3)
        return
    with pytest.raises(DeviceError, match=f"3 processes need a GPU each, and Paddle sees {gpus} here"):
        check_gpu_count(device, 3)
