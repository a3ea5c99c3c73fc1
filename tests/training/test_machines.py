"""Several machines, which are one here: launchers that find each other by an address."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qvl.cli.processes import Nodes, Processes, log_folder
from qvl.errors import UsageError
from tests.training.runs import LORA, command, finetune, losses


def test_the_three_flags_come_together() -> None:
    assert Nodes.asked(None, None, None) is None and Nodes.asked(1, None, None) is None
    nodes = Nodes.asked(2, "10.0.0.1:6170", 1)
    assert nodes == Nodes(2, "10.0.0.1:6170", 1)
    line = Processes(4, None, Path("logs"), nodes).command(["finetune"])
    assert " ".join(line).count("--nnodes 2 --master 10.0.0.1:6170 --rank 1") == 1
    assert log_folder(Path("out"), nodes).name.startswith("1-")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((2, None, 0), "all three"),
        ((None, "host:1", None), "all three"),
        ((2, "host", 0), "HOST:PORT"),
        ((2, "host:1", 2), "the last is 1"),
    ],
)
def test_half_of_them_are_refused(given: tuple[int | None, str | None, int | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Nodes.asked(*given)


@pytest.mark.slow
def test_two_machines_learn_what_one_process_does(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = [*LORA, "--max-steps", "4", "--threads", "1", "--set", "training.micro_batch_size=1"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert finetune(data, whole, tiny_checkpoint, *flags).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = command(
        "finetune", "--data", str(data / "data.json"), "-o", str(out), "--model", str(tiny_checkpoint), *flags
    )
    runs = [
        subprocess.Popen(
            [*line, "--nnodes", "2", "--master", address, "--rank", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert said[0][0] == f"{out / 'adapter'}\n" and said[1][0] == ""
    np.testing.assert_allclose(losses(out), losses(whole), rtol=1e-5)
