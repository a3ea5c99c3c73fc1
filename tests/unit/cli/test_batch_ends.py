"""How a batch ends early and goes on: what is said of the file, how it is known again, what nobody foresaw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batch_support import Echo, changed, fill_disk, lines_of
from scripted import Run

from qvl.cli import batch as batch_module
from qvl.cli.batch_digest import folder_digest

OUT = Path("out.jsonl")


def test_an_interrupted_restart_goes_on_without_restart(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    whole = OUT.read_bytes()
    echo.fail_after = 6
    code, _, err = batch("-o", "out.jsonl", "--restart", "--batch-size", "2")
    assert code == 130 and "of 16 records are in out.jsonl; the same command without --restart goes on" in err
    broken = OUT.read_bytes()
    assert broken and whole.startswith(broken) and broken != whole
    echo.fail_after = None
    batch("-o", "out.jsonl")
    assert OUT.read_bytes() == whole


def test_a_restart_that_wrote_nothing_says_that_the_file_is_as_it_was(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    echo.fail_after = 0
    code, _, err = batch("-o", "out.jsonl", "--restart")
    assert code == 130 and err == "qvl: nothing was written yet, out.jsonl is as it was\n"


def test_answers_that_were_there_are_not_this_run_s_progress(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    OUT.write_bytes(b"".join(OUT.read_bytes().splitlines(keepends=True)[:3]))
    echo.fail_after = 0
    err = batch("-o", "out.jsonl")[2]
    assert err.splitlines() == [
        "qvl: out.jsonl: going on; 3 of 16 records are there",
        "qvl: nothing was written yet, out.jsonl is as it was; the same command goes on from there",
    ]
    err = batch("-o", "out.jsonl", "--retry", "--batch-size", "1")[2]
    assert "3 of 16 records are in out.jsonl; the same command goes on from there" in err
    changed('"one"', '"ONE"')
    err = batch("-o", "out.jsonl", "--retry")[2]
    assert "nothing was written yet, what was there is in out.jsonl.retry; the same command goes on" in err


@pytest.mark.parametrize("room", [0, 700])
def test_a_disk_that_fills_in_a_restart_says_how_to_go_on(
    batch: Run, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    batch("-o", "out.jsonl")
    fill_disk(monkeypatch, room)
    code, _, err = batch("-o", "out.jsonl", "--restart")
    words = "out.jsonl: No space left on device; the same command without --restart goes on from here"
    assert code == 1 and words in err


def test_a_restart_that_cannot_begin_keeps_the_answers_that_are_there(
    batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch("-o", "out.jsonl")
    before = OUT.read_bytes()

    def drop(_self: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(batch_module.Pool, "drop", drop)
    code, _, err = batch("-o", "out.jsonl", "--restart")
    assert code == 1 and err.endswith("qvl: error: out.jsonl: Permission denied; it is as it was\n")
    assert OUT.read_bytes() == before


def test_a_model_that_was_verified_meanwhile_is_the_same_model(batch: Run, echo: Echo) -> None:
    manifest = echo.folder / ".qvl.json"
    manifest.write_text('{"verified_at": 1}')
    batch("-o", "out.jsonl")
    whole = OUT.read_bytes()
    OUT.write_bytes(whole[: len(whole) // 2])
    manifest.write_text('{"verified_at": 2}')
    assert batch("-o", "out.jsonl")[0] == 1  # some records are bad
    assert OUT.read_bytes() == whole
    assert folder_digest(echo.folder) != folder_digest(echo.folder, hidden=True)


def test_answers_from_before_names_with_a_dot_were_left_out_are_gone_on_with(
    batch: Run, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (echo.folder / ".qvl.json").write_text('{"verified_at": 1}')
    real = batch_module.run_digests
    monkeypatch.setattr(batch_module, "run_digests", lambda *given: real(*given)[1:])
    batch("-o", "out.jsonl")
    earlier = OUT.read_bytes().splitlines(keepends=True)
    OUT.write_bytes(b"".join(earlier[:9]))
    monkeypatch.setattr(batch_module, "run_digests", real)
    code, _, err = batch("-o", "out.jsonl")
    assert code == 1 and "going on; 9 of 16 records are there" in err
    lines = OUT.read_bytes().splitlines(keepends=True)
    assert lines[:9] == earlier[:9] and not set(lines[9:]) & set(earlier)
    assert len({line["fingerprint"].partition("-")[0] for line in lines_of(OUT)}) == 2
    echo.asked.clear()
    batch("-o", "out.jsonl", "--retry")
    assert sorted(echo.asked) == ["odd", "six"], "all others are kept, under either digest"
    assert "other settings" in batch("-o", "out.jsonl", "--system", "x")[2]


def test_what_nobody_foresaw_is_an_error_of_its_record(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    changed('"one"', '"bug"')
    code, _, err = batch("-o", "out.jsonl")
    assert code == 1 and "line 1: TypeError: nobody thought of this (not foreseen; --debug shows where)\n" in err
    assert "Traceback" not in err
    assert lines_of(OUT)[0]["error"] == "TypeError: nobody thought of this" and len(lines_of(OUT)) == 16
    code, _, err = batch("-o", "out.jsonl", "--restart", "--debug")
    assert "line 1: TypeError: nobody thought of this\n" in err and "foreseen" not in err
    assert "\nTypeError: nobody thought of this\n" in f"\n{err}", "which is the end of its traceback"
    monkeypatch.setenv("QVL_DEBUG", "1")
    assert "\nTypeError: nobody thought of this\n" in f"\n{batch('-o', 'out.jsonl', '--restart', '-q')[2]}"
    monkeypatch.delenv("QVL_DEBUG")
    err = batch("-o", "strict.jsonl", "--strict")[2]
    assert "nobody thought of this (not foreseen; --debug shows where) (--strict ends the run here)" in err
