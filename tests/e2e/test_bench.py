"""`qvl bench` as users run it: the real program, with qvl's side in a process of its own and a peer of the tests'."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qvl.bench.export import MODEL_COLUMNS
from qvl.cli import main

pytestmark = pytest.mark.slow

FAKE = Path(__file__).parents[1] / "unit" / "bench" / "fake_peer.py"
SMALL = ("--picture", "56x84", "--text-tokens", "9", "--new-tokens", "4", "--repeats", "2", "--threads", "1", "--quiet")
STAGES = ("start", "load", "start_to_first_token", "preprocess", "vision", "prefill", "first_token", "answer")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the program with a store of its own; (exit code, stdout, stderr) down to the file descriptors."""
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QVL_THREADS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        # The tests' own process has its threads already; --threads is for the sides.
        code = main(["bench", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What --peer-python takes: runs the tests' own peer, whatever script it is given."""
    if sys.platform == "win32":
        pytest.skip("a shell script")
    monkeypatch.setenv("FAKE_PEER_LOG", str(tmp_path / "log"))
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}"\n')
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_file_and_no_process(
    tiny_checkpoint: Path, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    line = [sys.executable, "-m", "qvl.cli", "bench", "--model", str(tiny_checkpoint), *SMALL, "--repeats", "100000"]
    with subprocess.Popen(line, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL) as program:
        try:
            deadline = time.monotonic() + 60
            while not (children := psutil.Process(program.pid).children(recursive=True)):
                assert program.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            assert list(tmp_path.glob("qvl-bench-*"))
            program.send_signal(kind)
            assert program.wait(timeout=30) == code
        finally:
            program.kill()
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list(tmp_path.iterdir())


def by_measure(record: dict[str, Any], side: str) -> dict[tuple[str, int | None, int | None], dict[str, Any]]:
    return {(r["measure"], r["context"], r["batch"]): r for r in record["rows"] if r["side"] == side}


def test_every_phase_of_a_checkpoint(bench: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    target, sheet = tmp_path / "b.json", tmp_path / "b.csv"
    grid = ("--contexts", "8,40,99999", "--batch-sizes", "1,3")
    output = ("--json", str(target), "--csv", str(sheet), "--plot", str(tmp_path / "b.png"))
    code, out, err = bench("--model", str(tiny_checkpoint), *SMALL, *grid, *output)
    assert (code, err) == (0, "")
    record = json.loads(target.read_text())
    assert (record["format"], record["kind"], record["threads"], record["comparison"]) == (1, "model", 1, None)
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert {"qvl", "python", "numpy"} <= set(record["versions"])
    question = record["settings"]["question"]
    # 56x84 pixels are 2x3 tokens.
    assert (question["prompt_tokens"], question["vision_tokens"]) == (15, 6)
    assert record["settings"]["quantize"] in ("none", "auto") and record["settings"]["dtype"] == "float32"
    assert len(record["sides"][0]["details"]["token_ids"]) == 4
    rows = by_measure(record, "qvl")
    for stage in STAGES:
        row = rows[stage, None, None]
        assert len(row["samples"]) == 2 and 0 < row["least"] <= row["median"] <= row["most"], row
    parts = [rows[stage, None, None]["samples"] for stage in ("preprocess", "vision", "prefill", "first_token")]
    for preprocess, vision, prefill, first in zip(*parts, strict=True):
        assert preprocess + vision + prefill == pytest.approx(first)
    for batch in (1, 3):
        for context in (8, 40):
            assert len(rows["decode", context, batch]["samples"]) == 2
        assert "the context holds" in rows["decode", 99999, batch]["note"]
    assert 10**7 < rows["peak_memory", None, None]["median"] <= rows["peak_memory_all", None, None]["median"]
    assert re.search(r"^ ?first token +[\d.]+ m?s ", out, re.MULTILINE)
    assert re.search(r"decode behind 40, 3 at a time +[\d.]+ tokens/s", out) and "\x1b" not in out
    lines = list(csv.DictReader(io.StringIO(sheet.read_text())))
    assert tuple(lines[0]) == MODEL_COLUMNS and len(lines) == len(record["rows"])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_random_weights_of_a_shape_beside_a_peer(bench: Run, fake_python: Path, tmp_path: Path) -> None:
    peer = ("--against", "transformers", "--peer-python", str(fake_python))
    shape = ("--profile", "demo", "--random-weights", "--contexts", "8", "--batch-sizes", "1")
    code, out, err = bench(*shape, *SMALL, *peer, "--json", "-")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert [side["name"] for side in record["sides"]] == ["qvl", "transformers"]
    ours, theirs = record["sides"]
    assert theirs["versions"] == {"fake": "1.2.3"} and theirs["details"]["threads"] == 1
    assert record["turns"] in ("kept", "restarted")
    same = [one == other for one, other in zip(ours["details"]["token_ids"], [7] * 4, strict=True)]
    assert record["comparison"]["equal_tokens"] == sum(same) and record["comparison"]["compared_tokens"] == 4
    assert "the prompts differ: 44 and 90 tokens" in record["remarks"]
    rows = by_measure(record, "transformers")
    assert rows["first_token", None, None]["samples"] == [2.0, 2.0]
    assert rows["decode", 8, 1]["samples"] == [1.5, 1.5]
    made = [path.name for path in (tmp_path / "home" / "bench").iterdir()]
    assert len(made) == 1 and made[0].startswith("demo-random-")
    loads = [line for line in (tmp_path / "log").read_text().splitlines() if line.endswith(" load")]
    assert len(loads) >= 2


def test_a_peer_that_is_not_installed_is_named_before_anything_is_timed(
    bench: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    if sys.platform == "win32":
        pytest.skip("a shell script")
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # -S: nothing that pip installed
    bare.chmod(0o755)
    asked = ("--model", str(tiny_checkpoint), "--contexts", "none", *SMALL)
    for peer, needs in (("transformers", "transformers torch"), ("openvino", "openvino-genai")):
        model = ("--peer-model", str(tmp_path)) if peer == "openvino" else ()
        code, out, err = bench(*asked, "--against", peer, *model, "--peer-python", str(bare))
        assert (code, out) == (1, "")
        assert f"--against {peer}: {bare} cannot run it (" in err and f"pip install {needs}" in err
    code, _, err = bench(*asked, "--against", "transformers", "--peer-python", str(tmp_path / "nothing"))
    assert code == 1 and "cannot be run" in err


def test_what_does_not_fit_is_refused_before_its_weights_are_made(bench: Run, tmp_path: Path) -> None:
    import psutil

    if psutil.virtual_memory().total > 2**38:
        pytest.skip("the 72B might fit here")
    code, out, err = bench("--profile", "72b", "--random-weights", "--device", "cpu", *SMALL)
    assert (code, out) == (1, "")
    assert re.search(r"this takes about \d+\.\d+ GiB, \d+\.\d+ GiB are free", err)
    assert not (tmp_path / "home").exists()


def test_a_prompt_that_is_too_short_to_be(bench: Run, tiny_checkpoint: Path) -> None:
    code, out, err = bench("--model", str(tiny_checkpoint), "--text-tokens", "2", "--quiet")
    assert (code, out, err) == (2, "", "qvl: error: --text-tokens is 2; the least is 3\n")


def test_text_alone(bench: Run, tiny_checkpoint: Path) -> None:
    asked = (*SMALL[2:], "--picture", "none", "--contexts", "none", "--repeats", "1", "--warmup", "0", "--json", "-")
    code, out, err = bench("--model", str(tiny_checkpoint), *asked)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["settings"]["question"]["prompt_tokens"] == 9
    assert not [row for row in record["rows"] if row["measure"] == "decode"]
