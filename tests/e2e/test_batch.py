"""`qvl infer --batch` as users run it: the real program, killed and gone on with."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.golden import MEDIA

pytestmark = pytest.mark.slow  # programs are started

COMMAND = [sys.executable, "-m", "qvl.cli", "infer", "--profile", "demo", "--threads", "1"]
RECORDS = 200
PATIENCE = 300.0  # seconds


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo model is made, and where media lie beside the batch."""
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").symlink_to(MEDIA, target_is_directory=True)
    return tmp_path


def record(number: int) -> str:
    """Every tenth record is bad, in its own way; the others are of every kind."""
    text = f"Question {number}: what is here?" + " And then?" * (number % 7)
    sampling: dict[str, Any] = {"max_new_tokens": 3 + number * 7 % 22}
    if number % 10 == 9:
        bad = [
            "{bad json",
            json.dumps({"id": f"gone-{number}", "prompt": text, "images": ["media/gone.png"]}),
            json.dumps({"prompt": text, "temperture": 1}),
            json.dumps({"prompt": text, "temperature": -1}),
            json.dumps({"id": f"long-{number}", "prompt": "many words " * 20_000}),
            json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "image": "batch.jsonl"}]}]}),
        ]
        return bad[number // 10 % len(bad)]
    uri = "data:image/png;base64," + base64.b64encode((MEDIA / "grey.png").read_bytes()).decode()
    picture = {"type": "image", "image": "media/tall.png", "max_pixels": 3136}
    kinds: list[dict[str, Any]] = [
        {"prompt": text},
        {"id": f"picture-{number}", "prompt": text, "images": ["media/70x98.png"]},
        {"prompt": text, "temperature": 0.9, "top_p": 0.8, "seed": number},
        {"prompt": "From {} to {}?", "images": ["media/grey.png", "media/tall.png"]},
        {"id": number * 1000, "prompt": text, "system": "Be brief.", "repetition_penalty": 1.3},
        {"prompt": text, "images": [uri]},
        {
            "messages": [
                {"role": "user", "content": [picture, {"type": "text", "text": text}]},
                {"role": "assistant", "content": "A thing."},
                {"role": "user", "content": "Which?"},
            ]
        },
        *([{"prompt": text, "videos": [{"video": "media/clip.mp4", "nframes": 2}]}] if number % 40 == 7 else []),
    ]
    return json.dumps(kinds[number % len(kinds)] | sampling)


def own_id(number: int) -> object:
    try:
        return json.loads(record(number)).get("id", number)
    except ValueError:
        return number


def finished(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(command: list[str], output: Path, lines: int) -> None:
    """Run the program and end it, without a chance to tidy up, once the file has so many lines."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while finished(output) < lines:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        process.kill()


@pytest.mark.slow
def test_a_batch_of_200_killed_twice_gives_the_file_of_an_unbroken_run(home: Path) -> None:
    (home / "batch.jsonl").write_text("".join(record(number) + "\n" for number in range(1, RECORDS + 1)))
    command = [*COMMAND, "--batch", "batch.jsonl"]
    whole = subprocess.run([*command, "-o", "whole.jsonl"], capture_output=True, text=True, timeout=PATIENCE)
    assert whole.returncode == 1 and whole.stdout == ""
    assert whole.stderr.splitlines()[-1].startswith(f"qvl: error: 20 of {RECORDS} records failed")

    output = home / "broken.jsonl"
    killed([*command, "-o", output.name], output, 40)
    first = output.read_bytes()
    output.write_bytes(first[:-9])  # as a system that went down leaves it: in the middle of a line
    killed([*command, "-o", output.name], output, 110)
    second = output.read_bytes()
    kept = len(second.splitlines())
    last = subprocess.run([*command, "-o", output.name], capture_output=True, text=True, timeout=PATIENCE)
    assert last.returncode == 1 and f"going on; {kept} of {RECORDS} records are there" in last.stderr
    assert 40 <= len(first.splitlines()) < kept < RECORDS, "it was not killed in the middle"
    assert second.startswith(first[:-9].rpartition(b"\n")[0]) and output.read_bytes().startswith(second)
    assert output.read_bytes() == (home / "whole.jsonl").read_bytes()

    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [own_id(number) for number in range(1, RECORDS + 1)]
    errors = {number: line["error"] for number, line in enumerate(lines, 1) if "error" in line}
    assert list(errors) == list(range(9, RECORDS, 10))
    words = ["not valid JSON", "no such file", "did you mean 'temperature'", "temperature must be", "tokens", "picture"]
    assert all(words[number // 10 % 6] in error for number, error in errors.items())


def alone(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*COMMAND, "-q", "--json", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    answer.pop("stats")
    return answer


@pytest.mark.slow
def test_a_record_gets_in_a_batch_what_it_gets_alone(home: Path) -> None:
    records = [
        {"prompt": "Hi", "max_new_tokens": 12},
        {"prompt": "Draw", "temperature": 0.8, "seed": 5, "max_new_tokens": 30},
        {"prompt": "What is it?", "images": ["media/70x98.png"], "max_new_tokens": 20, "repetition_penalty": 1.2},
        {"prompt": "Describe.", "videos": ["media/clip.mp4"], "max_new_tokens": 9},
    ]
    (home / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = subprocess.run([*COMMAND, "--batch", "in.jsonl"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    together = [json.loads(line) for line in done.stdout.splitlines()]
    flags = [
        ["-p", "Hi", "--max-new-tokens", "12"],
        ["-p", "Draw", "--temperature", "0.8", "--seed", "5", "--max-new-tokens", "30"],
        ["media/70x98.png", "-p", "What is it?", "--max-new-tokens", "20", "--repetition-penalty", "1.2"],
        ["media/clip.mp4", "-p", "Describe.", "--max-new-tokens", "9"],
    ]
    for number, arguments in enumerate(flags):
        answer = together[number]
        assert answer.pop("id") == number + 1 and len(answer.pop("fingerprint")) == 25
        assert answer == alone(*arguments)


def test_a_folder_is_captioned_picture_by_picture(home: Path) -> None:
    (home / "photos").mkdir()
    for name in ("grey.png", "tall.png", "wide.png"):
        (home / "photos" / name).write_bytes((MEDIA / name).read_bytes())
    (home / "photos" / "broken.png").write_bytes(b"no picture")
    command = [*COMMAND, "photos", "--each", "-p", "describe", "-o", "captions.jsonl", "--max-new-tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    lines = [json.loads(line) for line in (home / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [str(Path("photos") / name) for name in ("broken.png", "grey.png", "tall.png", "wide.png")]
    assert [line["id"] for line in lines] == names
    assert done.returncode == 1 and "not a picture" in lines[0]["error"]
    assert all(len(line["token_ids"]) <= 5 and len(line["image_grid_thw"]) == 1 for line in lines[1:])


def test_a_reader_that_goes_away_ends_a_batch_quietly(home: Path) -> None:
    (home / "in.jsonl").write_text('{"prompt": "Hi", "max_new_tokens": 3}\n' * 1 + '{"prompt": "Ho"}\n' * 30)
    command = [*COMMAND, "-q", "--batch", "in.jsonl", "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141


def test_a_pipe_that_stays_open_keeps_no_answer_waiting(home: Path) -> None:
    """A program that asks, reads the answer and only then asks again; the second line comes in two pieces."""
    command = [*COMMAND, "--batch", "-", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=home) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            answers = []
            for pieces in ([b'{"prompt": "First?", "max_new_tokens": 4}\n'], [b'{"prompt": "Sec', b'ond?"}\n']):
                for piece in pieces:
                    process.stdin.write(piece)
                    process.stdin.flush()
                    time.sleep(0.1)
                assert select.select([process.stdout], [], [], PATIENCE)[0]
                answers.append(json.loads(process.stdout.readline()))
            process.stdin.write(b'{"prompt": "Third, without the end of its line?"}')
            process.stdin.close()
            answers.append(json.loads(process.stdout.readline()))
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert [answer["id"] for answer in answers] == [1, 2, 3]


def test_on_a_terminal_a_bar_is_shown_and_the_answers_still_go_to_stdout(home: Path) -> None:
    pty = pytest.importorskip("pty")
    (home / "in.jsonl").write_text('{"prompt": "Hi", "max_new_tokens": 3}\n' * 20 + "{bad\n")
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--batch", "in.jsonl", "--batch-size", "2"],
        stdout=subprocess.PIPE,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(inner)
        shown = b""
        while True:
            try:
                data = os.read(outer, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not data:
                break
            shown += data
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout.read().splitlines()]
        assert process.wait(PATIENCE) == 1
    os.close(outer)
    assert [line["id"] for line in lines] == list(range(1, 22))
    text = shown.decode()
    assert "answering" in text and "/21" in text and "1 failed" in text
    assert "qvl: line 21: not valid JSON" in text and "1 of 21 records failed" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_standard_output_on_a_full_disk_is_told(home: Path) -> None:
    (home / "in.jsonl").write_text('{"prompt": "Hi", "max_new_tokens": 3}\n')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "-q", "--batch", "in.jsonl"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    assert (done.returncode, done.stderr) == (1, "qvl: error: standard output: No space left on device\n")
