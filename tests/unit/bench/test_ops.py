"""`qvl bench ops`: every native op has its place in the table, and the table is what people and machines get."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

import qvl.cli
from qvl.bench import oprun, peaks
from qvl.bench.export import OP_COLUMNS
from qvl.bench.opcases import CASES
from qvl.ops import native
from qvl.ops.packing import KINDS
from tests.unit.ops.test_packing import needs_native

ROOT = Path(__file__).parents[3]
# Files of ext/paddle that bind no ops, but the library's own settings and what its tests ask of it.
NO_OPS = ("module.cc", "threads_probe.cc")
ASKED = {"has_product"}  # whether there is an op
OPS = ("bench", "ops", "--shape", "tiny", "--repeats", "2", "--quiet")


@pytest.fixture(autouse=True)
def _quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_TRIES", 1)
    monkeypatch.setattr(oprun, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.delenv("QVL_OPS", raising=False)


def bound_names() -> set[str]:
    files = [path for path in (ROOT / "ext" / "paddle").glob("*.cc") if path.name not in NO_OPS]
    names = {name for path in files for name in re.findall(r'\bm\.def\("(\w+)"', path.read_text(encoding="utf-8"))}
    return names - ASKED


def test_every_native_op_is_timed() -> None:
    assert {"linear", "attention", "sample"} <= bound_names()
    assert set(CASES) == bound_names()


@needs_native
def test_the_library_has_no_other_ops() -> None:
    module, _ = native.installed()
    settings = {"level", "levels", "set_level", "threads", "set_threads", "visits"} | ASKED
    functions = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert {name for name in functions if name.islower()} - settings == set(CASES)


def test_every_op_runs_in_both_bodies_and_is_told_to_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main([*OPS, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    record = json.loads(out)
    assert (record["kind"], record["settings"]["shape"], record["format"]) == ("ops", "tiny", 1)
    assert {row["op"] for row in record["ops"]} == set(CASES)
    kinds = {row["variant"].split()[0] for row in record["ops"] if row["op"] == "linear"}
    assert kinds == set(KINDS)
    built = native.installed()[0] is not None
    for row in record["ops"]:
        assert len(row["composed"]["samples"]) == 2 and row["composed"]["median"] > 0, row
        assert (row["native"]["median"] is not None) == built == (row["speedup"] is not None), row
        assert row["bytes"] > 0
        if built:
            assert row["bandwidth_share"] == pytest.approx(row["bytes"] / row["native"]["median"] / _bandwidth(record))
            assert (row["arithmetic_share"] is not None) == (row["operations"] > 0)
    # One row and many, where the number of rows decides what an op is bound by.
    for op in ("linear", "rms_norm", "cached_attention", "attention", "swiglu"):
        assert {row["rows"] == 1 for row in record["ops"] if row["op"] == op} == {True, False}, op


def _bandwidth(record: dict) -> float:  # type: ignore[type-arg]
    return max(record["peaks"]["read"], record["peaks"]["copy"])


def test_a_table_of_some_of_them_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main([*OPS, "--only", "gelu,rms"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    names = [line.split()[0] for line in out.splitlines() if re.match(r" ?\w+_?\w+ .*(x|-) +\d+ %", line)]
    assert "GB/s read" in out
    learning = ["rms_norm_grad", "quick_gelu_grad"]
    if native.installed()[0] is not None:
        assert names == ["rms_norm", "rms_norm", "add_rms_norm", "add_rms_norm", "quick_gelu", *learning]


def test_csv_has_a_line_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "ops.csv"
    assert qvl.cli.main([*OPS, "--only", "sample", "--csv", str(target)]) == 0
    assert "sample" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert tuple(rows[0]) == OP_COLUMNS
    assert [(row["op"], row["variant"]) for row in rows] == [("sample", "greedy"), ("sample", "top-k, top-p, penalty")]
    assert all(float(row["composed_least"]) <= float(row["composed_median"]) for row in rows)


def test_without_native_ops_the_others_are_timed_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QVL_OPS", "composed")
    assert qvl.cli.main([*OPS[:-1], "--only", "rms_norm", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert "only the composed bodies are timed: QVL_OPS=composed" in " ".join(record["remarks"])
    assert "QVL_OPS=composed" in err and record["settings"]["level"] is None
    assert all(row["native"]["samples"] == [] and row["composed"]["median"] > 0 for row in record["ops"])


def test_peaks_are_the_best_of_both_ends_of_a_run_and_tell_an_unsteady_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = peaks.Peaks(1e9, 2e9, 1e10, None, None), peaks.Peaks(3e9, 1e9, 1e10, 2e10, 5e9)
    found = peaks.best(slow, fast)
    assert found == peaks.Peaks(3e9, 2e9, 1e10, 2e10, 5e9)
    assert (found.bandwidth, found.arithmetic("bfloat16"), found.arithmetic("int8")) == (3e9, 2e10, 1e10)
    ends = iter([slow, fast])
    monkeypatch.setattr(peaks, "measure", lambda *_: next(ends))
    assert qvl.cli.main([*OPS[:-1], "--only", "quick_gelu", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["peaks"]["read"] == 3e9
    assert "shares are rough" in err and "shares are rough" in json.loads(out)["remarks"][-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "linnear"], "--only linnear: no such op, did you mean 'linear'?"),
        (["--shape", "3b"], "--shape is 3b; expected 2b, 7b, tiny"),
        (["--profile", "2b"], "'qvl bench ops' takes --shape, --only"),
        (["--contexts", "7"], "'qvl bench ops' takes --shape, --only"),
    ],
)
def test_a_wrong_request(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert qvl.cli.main(["bench", "ops", "--quiet", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err
