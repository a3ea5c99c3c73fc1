"""`qvl infer` as users run it: the real program on a real, tiny checkpoint."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qvl.cli import main
from tests.golden import MEDIA, load_case
from tests.golden.cases import CASES
from tests.unit.media_fixtures import png_header

pytestmark = pytest.mark.slow  # programs are started

# What the references were made with, in place of the profile's and the checkpoint's own settings.
AS_REFERENCE = ["--set", "max_pixels=12845056", "--temperature", "0", "--repetition-penalty", "1"]
PICTURE = str(MEDIA / "70x98.png")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def qvl(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process; (exit code, stdout, stderr) down to the file descriptors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["infer", "--model", str(tiny_checkpoint), "--quiet", "--max-new-tokens", "24", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def as_json(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def test_an_answer_is_the_references_from_flags_to_json(qvl: Run) -> None:
    reference = load_case("image")
    answer = as_json(qvl(PICTURE, "-p", "What colour is it?", "--json", *AS_REFERENCE))
    assert answer["token_ids"] == reference["tokens"].tolist()
    assert answer["image_grid_thw"] == reference["image_grid_thw"].tolist() and answer["video_grid_thw"] == []
    assert answer["prompt_tokens"] == len(reference["input_ids"])
    assert (answer["finish_reason"], answer["profile"], answer["boxes"]) == ("length", "2b", [])
    assert answer["stats"]["new_tokens"] == 24 and answer["stats"]["peak_memory_bytes"] > 10**7


def test_drafts_are_counted_and_change_nothing(qvl: Run) -> None:
    question = (PICTURE, "-p", "1, 2, 1, 2, 1, 2", "--json", "--max-new-tokens", "60", *AS_REFERENCE)
    plain = as_json(qvl(*question, "--speculate", "off"))
    drafted = as_json(qvl(*question, "--speculate", "on", "--stop-loops"))
    assert plain["stats"]["drafted_tokens"] == 0 < drafted["stats"]["drafted_tokens"]
    same = ("text", "token_ids", "finish_reason", "boxes")
    assert [drafted[key] for key in same] == [plain[key] for key in same]
    assert drafted["stats"]["computed_tokens"] == drafted["prompt_tokens"] and drafted["stats"]["encoded_visions"] == 1


def test_only_the_answer_goes_to_stdout(qvl: Run) -> None:
    text = as_json(qvl(PICTURE, "-p", "What colour is it?", "--json"))["text"]
    code, out, err = qvl(PICTURE, "-p", "What colour is it?", "--stats")
    assert (code, out) == (0, text + "\n")
    assert "first token" in err and "tokens/s" in err and "peak memory" in err


def test_a_conversation_from_a_file_equals_the_reference(qvl: Run, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "turns")
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps(case.messages).replace("wide.png", str(MEDIA / "wide.png")))
    answer = as_json(qvl("--messages", str(chat), "--json", *AS_REFERENCE))
    assert answer["token_ids"] == load_case("turns")["tokens"].tolist()


def test_placeholders_interleave_pictures_and_text(qvl: Run) -> None:
    pictures = [str(MEDIA / "grey.png"), str(MEDIA / "tall.png")]
    answer = as_json(qvl(*pictures, "-p", "First: {}and then this: {}Which?", "--json", *AS_REFERENCE))
    assert answer["token_ids"] == load_case("interleaved")["tokens"].tolist()


def test_a_clip_and_its_flags_equal_the_reference(qvl: Run) -> None:
    flags = ["--fps", "4", "--max-pixels", "25088"]
    answer = as_json(qvl(str(MEDIA / "clip.mp4"), "-p", "What happens?", "--json", *flags, *AS_REFERENCE))
    assert answer["video_grid_thw"] == load_case("video-fps")["video_grid_thw"].tolist()
    assert answer["token_ids"] == load_case("video-fps")["tokens"].tolist()


def test_a_picture_is_the_same_by_path_data_uri_and_pipe(qvl: Run, tiny_checkpoint: Path) -> None:
    data = Path(PICTURE).read_bytes()
    by_path = as_json(qvl(PICTURE, "-p", "Hi", "--json"))["token_ids"]
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert as_json(qvl(uri, "-p", "Hi", "--json"))["token_ids"] == by_path
    command = [sys.executable, "-m", "qvl.cli", "infer", "-", "-p", "Hi", "--json", "--quiet", "--max-new-tokens", "24"]
    piped = subprocess.run([*command, "--model", str(tiny_checkpoint)], input=data, capture_output=True, timeout=120)
    assert json.loads(piped.stdout)["token_ids"] == by_path


def test_other_pictures_give_other_answers(qvl: Run) -> None:
    names = ("70x98.png", "grey.png", "palette.png", "wide.png")
    answers = {tuple(as_json(qvl(str(MEDIA / name), "-p", "Hi", "--json"))["token_ids"]) for name in names}
    assert len(answers) == len(names)


def test_a_stop_string_ends_the_text_exactly(qvl: Run) -> None:
    text = as_json(qvl(PICTURE, "-p", "What colour is it?", "--json"))["text"]
    stop = text[9:14]
    answer = as_json(qvl(PICTURE, "-p", "What colour is it?", "--stop", stop, "--json"))
    assert answer["text"] == text[: text.index(stop)] and answer["finish_reason"] == "stop"


def test_exif_rotation_is_honoured_unless_raw_pixels_are_asked_for(qvl: Run, tmp_path: Path) -> None:
    picture = Image.effect_noise((200, 100), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    shown = as_json(qvl(str(tmp_path / "turned.jpg"), "-p", "Hi", "--json"))
    raw = as_json(qvl(str(tmp_path / "turned.jpg"), "-p", "Hi", "--json", "--raw-pixels"))
    assert shown["image_grid_thw"][0][1:] == raw["image_grid_thw"][0][:0:-1]


def _files(folder: Path) -> dict[str, str]:
    """Every kind of broken medium, by name."""
    whole = Path(PICTURE).read_bytes()
    Image.open(PICTURE).convert("RGB").save(folder / "whole.jpg")
    clip = (MEDIA / "clip.mp4").read_bytes()
    contents = {
        "empty.png": b"",
        "text.jpg": b"this is no picture",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": (folder / "whole.jpg").read_bytes()[:400],
        "bomb.png": png_header(60_000, 60_000),
        "cut.mp4": clip[: len(clip) // 3],
        "text.mp4": b"this is no clip" * 100,
        "empty.mp4": b"",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (2, 900)).save(folder / "narrow.png")
    return {name: str(folder / name) for name in [*contents, "narrow.png", "missing.png", "missing.mp4"]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", "no such file"),
        ("missing.mp4", "no such file"),
        ("empty.png", "empty"),
        ("empty.mp4", "empty"),
        ("text.jpg", "not a picture"),
        ("cut.png", "truncated"),
        ("cut.jpg", "damaged"),
        ("bomb.png", "60000"),
        ("narrow.png", "200"),
        ("cut.mp4", "cut.mp4"),
        ("text.mp4", "text.mp4"),
    ],
)
def test_a_broken_medium_is_one_line_that_names_it(qvl: Run, tmp_path: Path, name: str, words: str) -> None:
    path = _files(tmp_path)[name]
    code, out, err = qvl(path, "-p", "Hi")
    assert (code, out) == (1, "")
    assert err.startswith("qvl: error: ") and err.count("\n") == 1
    assert name in err and words in err


def test_a_damaged_checkpoint_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes()[:50])
    command = [sys.executable, "-m", "qvl.cli", "infer", "-p", "Hi", "--model", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1 and "config.json" in run.stderr


def test_ctrl_c_ends_the_answer_with_130(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", "infer", PICTURE, "-p", "Hi", "--model", str(tiny_checkpoint)]
    command += ["--max-new-tokens", "30000", "--ignore-eos", "--quiet"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    begun = program.stdout.read(40)  # the answer is under way
    program.send_signal(signal.SIGINT)
    rest, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert err == b"" and (begun + rest).endswith(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0])
def test_ctrl_c_at_any_moment_says_nothing(tiny_checkpoint: Path, delay: float) -> None:
    command = [sys.executable, "-m", "qvl.cli", "infer", PICTURE, "-p", "Hi", "--model", str(tiny_checkpoint)]
    command += ["--max-new-tokens", "30000", "--ignore-eos", "--quiet"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    ours = "typer" in err or "qvl: " in err  # by then Ctrl-C is in our hands; Python itself may end with 1
    if delay < 0.3 and program.returncode in (1, -signal.SIGINT) and not ours:
        pytest.skip("Python itself was still starting")
    assert (program.returncode, err.strip()) == (130, "")
    assert out == "" or out.endswith("\n")


def test_an_answer_survives_a_terminal_of_ascii(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", "infer", PICTURE, "-p", "Hi", "--model", str(tiny_checkpoint)]
    command += ["--max-new-tokens", "200", "--ignore-eos", "--quiet"]
    texts = {}
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        run = subprocess.run(command, capture_output=True, env=environment, timeout=120, stdin=subprocess.DEVNULL)
        assert (run.returncode, run.stderr) == (0, b"")
        texts[encoding] = run.stdout.decode(encoding)
    assert not texts["utf-8"].isascii(), "the answer shows nothing: take another question"
    assert texts["ascii"] == texts["utf-8"].encode("ascii", "replace").decode()


def test_a_prompt_of_broken_bytes_is_a_wrong_request(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", "infer", "-p", b"caf\xe9", "--model", str(tiny_checkpoint), "--quiet"]
    run = subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert (run.returncode, run.stdout, run.stderr.count(b"\n")) == (2, b"", 1)
    assert b"lone surrogate" in run.stderr


def test_a_reader_that_goes_away_is_no_error(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", "infer", PICTURE, "-p", "Hi", "--model", str(tiny_checkpoint)]
    command += ["--max-new-tokens", "20000", "--ignore-eos", "--quiet"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None and program.stderr is not None
    program.stdout.read(40)
    program.stdout.close()
    assert program.wait(timeout=60) == 141
    assert program.stderr.read() == b""


def test_the_demo_profile_needs_nothing_but_the_package(tmp_path: Path) -> None:
    environment = {**os.environ, "QVL_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "qvl.cli", "infer", PICTURE, "-p", "Hi", "--max-new-tokens", "3"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.strip()
    assert run.stderr.count("\n") == 1 and "demo model" in run.stderr and "qvl download 2b" in run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a shell and /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "err"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "qvl: error: standard output: No space left on device\n"),
        ("--stats 2>&-", 0, ""),
        ("--stats 2>/dev/full", 0, ""),
    ],
)
def test_an_answer_with_streams_closed_or_full(tiny_checkpoint: Path, redirection: str, code: int, err: str) -> None:
    command = f'"{sys.executable}" -m qvl.cli infer -p Hi --model "{tiny_checkpoint}" --quiet --max-new-tokens 3'
    usual = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    run = subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (code, err)
    assert run.stdout == (usual.stdout if "2>" in redirection else "")


@pytest.mark.parametrize("name", ["an.gif", "an.webp", "an.png"])
def test_an_animation_is_watched_as_a_clip(
    qvl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    frames = [Image.effect_noise((56, 56), 90).convert("RGB") for _ in range(6)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=200)
    monkeypatch.setenv("HOME", str(tmp_path))
    answer = as_json(qvl("--video", f"~/{name}", "-p", "What happens?", "--json"))
    assert len(answer["video_grid_thw"]) == 1 and answer["image_grid_thw"] == []
