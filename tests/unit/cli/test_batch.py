"""`qvl infer --batch` and `--each` in this process, with an engine that echoes: what is written, and what is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from batch_support import Echo, changed, fill_disk, lines_of
from scripted import Run, pipe

import qvl.cli
from qvl.cli import batch_output
from qvl.cli.batch_output import InOrder, OutputFile

OUT = Path("out.jsonl")


def test_every_record_has_a_line_in_order_and_bad_ones_stop_nobody(batch: Run, echo: Echo) -> None:
    code, out, err = batch("-o", "out.jsonl", "--batch-size", "3")
    lines = lines_of(OUT)
    assert (code, out) == (1, "")
    assert [line["id"] for line in lines] == [1, "two", 3, "odd", 50, 60, 7, *range(8, 17)]
    errors = {line["id"]: line["error"] for line in lines if "error" in line}
    assert list(errors) == [3, "odd", 60, 7]
    assert errors["odd"] == "this one fails" and errors[60] == f"{Path('data/missing.png')}: no such file"
    assert "top-p must be" in errors[7]
    assert list(lines[4]) == [
        *("id", "text", "token_ids", "prompt_tokens", "image_grid_thw", "video_grid_thw", "finish_reason", "boxes"),
        *("model", "profile", "fingerprint"),
    ]
    assert lines[1]["text"] == "zwei 二!" and "二" in OUT.read_text(encoding="utf-8")
    assert lines[4]["boxes"] == [{"label": "cat", "box": [20, 20, 100, 100], "picture": 0}]
    assert (echo.most_open, echo.loads) == (3, 1)
    drawn = dict(zip(echo.asked, echo.samplings, strict=True))
    assert drawn["zwei 二"].max_new_tokens == 7 and drawn["one"].max_new_tokens == 512
    assert err.splitlines() == [
        "qvl: line 3: not valid JSON (column 2: Expecting property name enclosed in double quotes)",
        'qvl: line 4 (id "odd"): this one fails',
        f"qvl: line 6 (id 60): {errors[60]}",
        f"qvl: line 7: {errors[7]}",
        "qvl: error: 4 of 16 records failed, their lines in out.jsonl say why; --retry runs them again",
    ]


def test_quiet_says_only_that_something_failed(batch: Run) -> None:
    _, _, err = batch("-o", "out.jsonl", "-q")
    assert err.count("\n") == 1 and err.startswith("qvl: error: 4 of 16")


def test_unordered_writes_the_same_lines_as_they_finish(batch: Run) -> None:
    batch("-o", "out.jsonl")
    batch("-o", "any.jsonl", "--unordered", "--batch-size", "4")
    ordered, unordered = OUT.read_bytes().splitlines(), Path("any.jsonl").read_bytes().splitlines()
    assert sorted(ordered) == sorted(unordered) and ordered != unordered


def test_standard_output_takes_the_lines_without_an_output_file(batch: Run) -> None:
    code, out, err = batch()
    assert code == 1 and err.endswith("failed, their lines in standard output say why\n")
    batch("-o", "out.jsonl")
    assert out == OUT.read_text(encoding="utf-8") == batch("-o", "-")[1]


def test_a_pipe_can_be_a_batch(echo: Echo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(monkeypatch, b'{"prompt": "a"}\n\n{"prompt": "b"}')
    assert qvl.cli.main(["infer", "--batch", "-"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [1, 3]
    pipe(monkeypatch, b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}')
    Path("out.jsonl").write_text("")
    assert qvl.cli.main(["infer", "--batch", "-", "-o", "out.jsonl"]) == 0
    pipe(monkeypatch, b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n{"prompt": "d"}')
    assert qvl.cli.main(["infer", "--batch", "-", "-o", "out.jsonl"]) == 0
    assert echo.asked[-1:] == ["d"] and echo.asked.count("a") == 2
    assert [line["id"] for line in lines_of(OUT)] == [1, 2, 3, 4]


def test_figures_are_in_the_lines_only_when_asked_for(batch: Run) -> None:
    batch("-o", "out.jsonl", "--stats")
    lines = lines_of(OUT)
    assert lines[0]["stats"]["new_tokens"] == 3 and "stats" not in lines[2]


@pytest.mark.slow
@pytest.mark.parametrize("order", [(), ("--unordered",)])
def test_a_run_killed_at_any_byte_ends_as_an_unbroken_one(batch: Run, echo: Echo, order: tuple[str, ...]) -> None:
    arguments = ("-o", "out.jsonl", "--batch-size", "3", *order)
    batch(*arguments)
    whole = OUT.read_bytes()
    lines = whole.splitlines(keepends=True)
    answers = len(echo.asked)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for size in sorted({*range(0, len(whole), 61), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}):
        OUT.write_bytes(whole[:size])
        finished = [json.loads(line) for line in whole[:size].splitlines(keepends=True) if line.endswith(b"\n")]
        echo.asked.clear()
        code, _, err = batch(*arguments)
        assert code == 1 and ("cut off" in err) == (size > 0 and whole[size - 1 : size] != b"\n")
        new = OUT.read_bytes()
        assert new.startswith(b"".join(lines[: len(finished)]))
        assert new == whole if not order else sorted(new.splitlines()) == sorted(whole.splitlines())
        by_model = sum("error" not in line or line["id"] in ("odd", 60) for line in finished)
        assert len(echo.asked) == answers - by_model


def test_nothing_left_to_do_loads_no_model(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    assert batch("-o", "out.jsonl")[0] == 1 and echo.loads == 1
    assert "going on; 16 of 16 records are there" in batch("-o", "out.jsonl")[2]


def test_ctrl_c_keeps_what_is_written_and_says_how_to_go_on(batch: Run, echo: Echo) -> None:
    echo.fail_after = 6
    code, _, err = batch("-o", "out.jsonl", "--batch-size", "2")
    assert code == 130 and "of 16 records are in out.jsonl; the same command goes on" in err
    broken = OUT.read_bytes()
    echo.fail_after = None
    assert batch("-o", "out.jsonl", "--batch-size", "5")[0] == 1
    resumed = OUT.read_bytes()
    batch("-o", "whole.jsonl")
    assert broken and resumed.startswith(broken) and resumed == Path("whole.jsonl").read_bytes()


def test_a_record_that_changed_is_not_mixed_in(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    before = OUT.read_bytes()
    changed('"one"', '"ONE"')
    code, _, err = batch("-o", "out.jsonl")
    assert code == 2 and "line 1 has changed since it was answered; --retry" in err
    assert OUT.read_bytes() == before
    batch("-o", "out.jsonl", "--restart")
    assert lines_of(OUT)[0]["text"] == "ONE!" and len(echo.asked) == 28


def test_a_restart_that_answers_nothing_keeps_the_answers_that_are_there(
    batch: Run, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch("-o", "out.jsonl")
    before = OUT.read_bytes()
    aside = OUT.with_name("out.jsonl.retry")
    aside.write_bytes(before)
    echo.fail_after = 0
    assert batch("-o", "out.jsonl", "--restart")[0] == 130
    echo.fail_after = None
    pipe(monkeypatch, b"")
    code, _, err = batch("--batch", "-", "-o", "out.jsonl", "--restart")
    assert code == 2 and "no records, so out.jsonl is left as it was" in err
    assert OUT.read_bytes() == aside.read_bytes() == before
    assert batch("-o", "out.jsonl", "--restart")[0] == 1  # some of its records are bad
    assert OUT.read_bytes() == before and not aside.exists()


def test_records_that_moved_or_went_are_noticed(batch: Run) -> None:
    batch("-o", "out.jsonl")
    batch("-o", "any.jsonl", "--unordered", "--batch-size", "3")
    changed('{"id": "odd", "prompt": "odd"}\n', "")
    assert 'has id "odd" where id 50 should be: records have moved' in batch("-o", "out.jsonl")[2]
    changed("more 7", "more 8")
    changed('{"prompt": "more 8"}\n', "")
    code, _, err = batch("-o", "any.jsonl", "--unordered")
    assert code == 2 and "has changed since it was answered" in err  # ids are line numbers, which moved


def test_answers_to_records_that_are_gone_are_noticed(batch: Run) -> None:
    batch("-o", "out.jsonl", "--unordered")
    changed('{"prompt": "more 7"}\n', "")
    assert "answers to records that are no longer asked" in batch("-o", "out.jsonl", "--unordered")[2]


def test_a_file_in_order_of_finishing_is_not_gone_on_with_in_order(batch: Run) -> None:
    batch("-o", "out.jsonl", "--unordered", "--batch-size", "3")
    code, _, err = batch("-o", "out.jsonl")
    assert code == 2 and "it was written with --unordered" in err


@pytest.mark.parametrize(
    "flags", [["--temperature", "0.5"], ["--system", "x"], ["--max-pixels", "784"], ["--stats"], ["--set", "system=x"]]
)
def test_other_settings_are_not_mixed_in(batch: Run, flags: list[str]) -> None:
    batch("-o", "out.jsonl")
    before = OUT.read_bytes()
    code, _, err = batch("-o", "out.jsonl", *flags)
    assert code == 2 and "was made with another model or other settings; --restart" in err
    assert OUT.read_bytes() == before
    assert batch("-o", "out.jsonl", "--batch-size", "2", "--speculate", "on")[0] == 1  # which change no answer


def test_another_model_is_not_mixed_in(batch: Run, echo: Echo) -> None:
    weights = echo.folder / "model.safetensors"
    weights.write_bytes(bytes(20 << 20))
    batch("-o", "out.jsonl")
    with weights.open("r+b") as file:
        file.seek(10 << 20)
        file.write(b"\x01" * (1 << 20))
    assert "was made with another model" in batch("-o", "out.jsonl")[2]
    weights.write_bytes(bytes(20 << 20))
    echo.dtype = "bfloat16"
    assert "was made with another model" in batch("-o", "out.jsonl")[2]


def test_records_added_at_the_end_are_answered_by_the_same_command(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    echo.asked.clear()
    with Path("data/in.jsonl").open("a") as file:
        file.write('{"prompt": "late"}\n')
    batch("-o", "out.jsonl")
    assert echo.asked == ["late"] and lines_of(OUT)[-1]["id"] == 17


def test_retry_runs_what_failed_or_changed_and_keeps_the_rest_in_order(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    before = OUT.read_bytes().splitlines()
    Path("data/cat.png").rename("data/missing.png")
    changed('"id": 50, "image": "cat.png"', '"id": 50, "image": "missing.png"')
    changed('"top_p": 3', '"top_p": 1')
    echo.asked.clear()
    code, _, err = batch("-o", "out.jsonl", "--retry")
    after = OUT.read_bytes().splitlines()
    assert sorted(echo.asked) == ["five", "odd", "seven", "six"]
    assert code == 1 and "2 of 16 records failed" in err
    assert [new == old for new, old in zip(after, before, strict=True)] == [n not in (4, 5, 6) for n in range(16)]
    assert not Path("out.jsonl.retry").exists()
    batch("-o", "fresh.jsonl")
    assert Path("fresh.jsonl").read_bytes() == OUT.read_bytes()


@pytest.mark.slow
def test_a_killed_retry_is_gone_on_with_and_loses_nothing(batch: Run, echo: Echo) -> None:
    batch("-o", "out.jsonl")
    whole, total = OUT.read_bytes(), len(echo.asked)
    again = ["odd", "six"]
    for size in range(0, len(whole), 211):  # killed while what was there is put aside
        Path("out.jsonl.retry").write_bytes(whole[:size])
        echo.asked.clear()
        batch("-o", "out.jsonl", "--retry")
        assert sorted(echo.asked) == again and OUT.read_bytes() == whole
    for size in range(0, len(whole), 211):  # killed while lines are written again
        Path("out.jsonl.retry").write_bytes(whole)
        OUT.write_bytes(whole[:size])
        echo.asked.clear()
        batch("-o", "out.jsonl", *([] if size % 2 else ["--retry"]))
        assert set(echo.asked) <= set(again) and OUT.read_bytes() == whole
        assert not Path("out.jsonl.retry").exists()
    assert total == 14


def test_strict_ends_at_the_first_failure_and_goes_on_once_it_is_mended(batch: Run) -> None:
    code, _, err = batch("-o", "out.jsonl", "--strict", "--batch-size", "3")
    assert code == 1 and err.splitlines()[-1].endswith("(--strict ends the run here)")
    assert err.splitlines()[-1].startswith("qvl: error: line 3: not valid JSON")
    assert [line["id"] for line in lines_of(OUT)] == [1, "two"]
    changed("{bad", '{"prompt": "good"}')
    assert 'line 4 (id "odd"): this one fails' in batch("-o", "out.jsonl", "--strict")[2]
    assert [line["id"] for line in lines_of(OUT)] == [1, "two", 3]
    batch("-o", "out.jsonl")
    assert "holds records that failed, and --strict allows none" in batch("-o", "out.jsonl", "--strict")[2]


@pytest.mark.parametrize("content", ["important notes\n", "no newline", '{"id": 1, "text": "other"}\n', "\n"])
def test_a_file_of_somebody_else_is_left_alone(batch: Run, echo: Echo, content: str) -> None:
    OUT.write_text(content)
    code, _, err = batch("-o", "out.jsonl")
    assert code == 2 and "line 1 was not written by a batch" in err
    assert OUT.read_text() == content and echo.loads == 0


def test_one_picture_each(batch: Run, echo: Echo) -> None:
    _ = batch
    os.chdir("data")
    Path("dog.png").write_bytes(Path("cat.png").read_bytes())
    command = ["infer", "--each", "*.png", "gone.png", "-p", "describe", "-o", "captions.jsonl"]
    assert qvl.cli.main(command) == 1
    lines = lines_of(Path("captions.jsonl"))
    assert [line["id"] for line in lines] == ["cat.png", "dog.png", "gone.png"]
    assert lines[0]["text"] == "describe!" and "line" not in lines[2]
    assert len(echo.messages) == 3 and len(echo.messages[0][0].parts) == 2
    assert qvl.cli.main([*command[:5], "explain", *command[6:]]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "data/none.jsonl"], "--batch data/none.jsonl: cannot be read (No such file or directory)"),
        (["--batch", "data"], "--batch data: cannot be read (Is a directory)"),
        (["--batch", "-"], "nothing is piped in"),
        (["--batch", "data/in.jsonl", "--each"], "--batch and --each exclude each other"),
        (["--batch", "data/in.jsonl", "data/cat.png"], "--batch does not go with MEDIA"),
        (["--batch", "data/in.jsonl", "--boxes", "b.png"], "--batch does not go with --boxes"),
        (["--batch", "data/in.jsonl", "--messages", "m.json"], "--batch does not go with --messages"),
        (["--batch", "data/in.jsonl", "-o", "data"], "--output data: is a folder"),
        (["--batch", "data/in.jsonl", "-o", "no/out.jsonl"], "there is no folder no"),
        (["--batch", "data/in.jsonl", "-o", "/dev/null"], "is not a file; without it"),
        (["--batch", "data/in.jsonl", "-o", "data/in.jsonl"], "is the batch itself"),
        (["--batch", "data/in.jsonl", "--retry"], "--retry is about an output file"),
        (["--batch", "data/in.jsonl", "-o", "o", "--retry", "--restart"], "exclude each other"),
        (["--batch", "data/in.jsonl", "--temperature", "-1"], "temperature must be"),
        (["--batch", "data/in.jsonl", "--fps", "1", "--nframes", "2"], "--fps and --nframes exclude each other"),
        (["--batch", "data/in.jsonl", "--batch-size", "0"], "--batch-size is 0"),
        (["data/cat.png", "-p", "x", "-o", "out.jsonl"], "--output goes with --batch FILE or --each"),
        (["data/cat.png", "-p", "x", "--batch-size", "8"], "--batch-size goes with --batch FILE or --each"),
        (["data/cat.png", "--each"], "no question: give one with -p"),
        (["data/cat.png", "--each", "-p", "{} {}"], "the prompt has 2 places {} for 1 picture or clip"),
        (["--each", "-p", "x"], "name files, folders or patterns"),
    ],
)
def test_a_wrong_request_ends_at_once(
    batch: Run, echo: Echo, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    _ = batch
    assert qvl.cli.main(["infer", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("qvl: error: ") and words in err and err.count("\n") == 1
    assert echo.loads == 0


def test_two_runs_do_not_write_one_file(batch: Run) -> None:
    pytest.importorskip("fcntl")
    other = OutputFile(OUT)
    assert "another run is writing it" in batch("-o", "out.jsonl")[2]
    other.close()
    assert batch("-o", "out.jsonl")[0] == 1


def test_a_disk_that_is_full_leaves_whole_lines(batch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batch("-o", "whole.jsonl")
    fill_disk(monkeypatch, 700)
    code, _, err = batch("-o", "out.jsonl")
    assert code == 1 and "out.jsonl: No space left on device; the same command goes on from here" in err
    assert OUT.read_bytes().endswith(b"\n") and 0 < len(lines_of(OUT)) < 16
    monkeypatch.undo()


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_what_waits_for_its_turn_comes_out_in_order(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_output, "_HELD_BYTES", max(limit, 1))
    order = InOrder(2)
    lines = {number: f"line {number}\n".encode() * number for number in range(2, 12)}
    came = [list(order.put(number, lines[number])) for number in (5, 4, 2, 7, 3, 11, 6, 8, 10, 9)]
    assert [[number for number, _ in ready] for ready in came] == [
        [],
        [],
        [2],
        [],
        [3, 4, 5],
        [],
        [6, 7],
        [8],
        [],
        [9, 10, 11],
    ]
    assert all(line == lines[number] for ready in came for number, line in ready)
    order.close()
