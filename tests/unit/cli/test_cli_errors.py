"""How `qvl infer` ends when it cannot or must not go on."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from scripted import Run, Script, pipe

import qvl.cli
from qvl.errors import MediaError, MemoryLimitError, UsageError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["missing/out.png", "out.xyz", "out", "folder.png"])
def test_a_drawing_that_cannot_be_written_is_found_before_the_run(
    run: Run, script: Script, picture: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    code, out, err = run(picture, "-p", "x", "--boxes", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert "--boxes" in err
    assert script.load == {}


def test_ctrl_c_ends_the_answer_cleanly(run: Run, script: Script) -> None:
    script.error = KeyboardInterrupt()
    assert run("-p", "x", "--quiet") == (130, "A \n", "")
    assert run("-p", "x", "--quiet", "--json") == (130, "", "")


def test_an_error_in_the_middle_of_an_answer_starts_on_its_own_line(run: Run, script: Script) -> None:
    script.error = UsageError("two\nlines")
    assert run("-p", "x", "--quiet") == (2, "A \n", "qvl: error: two lines\n")


def test_a_closed_pipe_ends_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert qvl.cli.main(["infer", "-p", "x", "--quiet"]) == 141
    assert run("-p", "x", "--quiet") == (0, "A cat.\n", "")


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_for_debug(run: Run, script: Script) -> None:
    script.memory_error = ValueError("odd")
    code, out, err = run("-p", "x", "--quiet")
    assert (code, out) == (1, "")
    assert err == "qvl: error: ValueError: odd (not foreseen; --debug shows where)\n"
    code, _, err = run("-p", "x", "--quiet", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_the_memory_check_can_be_left_out(run: Run, script: Script) -> None:
    script.memory_error = MemoryLimitError("too big")
    assert run("-p", "x", "--quiet") == (1, "", "qvl: error: too big\n")
    assert run("-p", "x", "--quiet", "--no-memory-check")[0] == 0
    assert script.load["check_memory"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FOLDER", "-p", "x"], "give it as --video"),
        (["PICTURE", "-p", "x", "--profile", "nope"], "no profile 'nope'; there are demo, demo-train, 2b"),
        (["PICTURE", "-p", "x", "--set", "max_pixel=3"], "did you mean 'max_pixels'?"),
        (["PICTURE", "-p", "x", "--set", "max_pixels"], "expected key=value"),
        (["PICTURE", "-p", "x", "--set", "max_pixels=abc"], "max_pixels is 'abc'"),
        (["--messages", "CHAT"], "message 0: unknown role 'usr', did you mean 'user'?"),
        (["--messages", "CHAT", "-p", "x"], "leave out --prompt"),
        (["PICTURE", "-p", "a{}b{}"], "2 places {} for 1"),
        (["PICTURE", "-p", "x", "--fps", "2"], "there is no clip"),
        (["--video", "FOLDER", "-p", "x", "--fps", "2"], "of a folder, a glob or a list of frames all are used"),
        (["--video", "FOLDER/*.png", "-p", "x", "--fps", "2"], "of a folder, a glob or a list of frames all are used"),
        (["-p", "x", "--max-pixels", "100"], "there is no picture or clip"),
        (["PICTURE", "-p", "x", "--temperature", "-1"], "temperature must be 0 (greedy) or 0.001 to 100, not -1.0"),
        (["PICTURE", "-p", "x", "--speculate", "maybe"], "speculate must be auto, on or off, not 'maybe'"),
        (["PICTURE", "-p", "x", "--temperature", "nan"], "temperature must be 0 (greedy) or 0.001 to 100, not nan"),
        (["PICTURE", "-p", "x", "--temperature", "1e-300"], "temperature must be 0 (greedy) or 0.001 to 100"),
        (["PICTURE", "-p", "x", "--temperature", "1e300"], "temperature must be 0 (greedy) or 0.001 to 100"),
        (["PICTURE", "-p", "x", "--repetition-penalty", "1e-300"], "repetition-penalty must be 0.01 to 100"),
        (["PICTURE", "-p", "x", "--repetition-penalty", "1e300"], "repetition-penalty must be 0.01 to 100"),
        (["PICTURE", "-p", "x", "--top-p", "nan"], "top-p must be over 0"),
        (["--video", "PICTURE", "-p", "x", "--fps", "nan"], "--fps is nan; expected a number above 0"),
        (["--video", "PICTURE", "-p", "x", "--fps", "0"], "--fps is 0; expected a number above 0"),
        (["--video", "PICTURE", "-p", "x", "--video-start", "nan"], "--video-start is nan; expected a number"),
        (["--video", "PICTURE", "-p", "x"], "is a picture"),
        (["PICTURE", "-p", "a{}b{}c{}"], "the prompt has 3 places {} for 1 picture or clip"),
        (["PICTURE", "PICTURE", "-p", "a{}"], "the prompt has 1 place {} for 2 pictures and clips"),
        (["PICTURE", "-p", "x", "--set", "max_pixels=yes"], "max_pixels is 'yes'"),
        (["PICTURE", "-p", "x", "--set", "generation=null"], "not 'null'"),
        (["PICTURE", "-p", "x", "--profile", "2B"], "did you mean '2b'?"),
        (["PICTURE", "-p", "x", "--profile", "2b-lora"], "profile '2b-lora' is for qvl finetune; take one such as 2b"),
        (["PICTURE", "-p", "x", "--boxes", "FOLDER/a.gif"], "must end in one of .png, .jpg"),
        (["PICTURE", "-p", "x", "--boxes", "FOLDER/a.pdf"], "must end in one of .png, .jpg"),
        (["", "-p", "x"], "MEDIA is empty"),
        (["PICTURE", "-p", ""], "--prompt is empty"),
        (["-p", "x", "--video", ""], "--video is empty"),
        (["-p", "x", "--model", ""], "--model is empty"),
        (["-p", "x", "--stop", ""], "--stop is empty"),
        (["--messages", ""], "--messages is empty"),
        (["PICTURE", "-p", "x", "--device", "tpu"], "expected auto, cpu, gpu or gpu:N"),
        (["PICTURE", "-p", "x", "--nonsense"], "--nonsense"),
        (["PICTURE", "-p", "x", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["PICTURE", "-p", "x", "--boxes", "FOLDER/none/out.png"], "there is no folder"),
        (["-p", "x", "--boxes", "out.png"], "there is none"),
        (["PICTURE", "-p", "x", "--resized-height", "100"], "go together"),
        (["PICTURE", "-p", "x", "--threads", "0"], "--threads"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    run: Run, script: Script, picture: str, tmp_path: Path, arguments: list[str], words: str
) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "usr", "content": "a"}]')
    names = {"PICTURE": picture, "CHAT": str(chat)}
    filled = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    code, out, err = run("--quiet", *(names.get(argument, argument) for argument in filled))
    assert (code, out) == (2, "")
    assert err.startswith("qvl: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert script.load == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jpg", "-p", "x"], "nowhere.jpg: no such file"),
        (["--video", "nowhere", "-p", "x"], "nowhere: no such file or folder"),
        (["--video", "nowhere*.png", "-p", "x"], "no file matches"),
        (["a" * 5000, "-p", "x"], "not a file name"),
    ],
)
def test_missing_media_are_found_before_the_model_is_loaded(
    run: Run, script: Script, arguments: list[str], words: str
) -> None:
    code, out, err = run("--quiet", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert script.load == {}


def test_standard_input_is_one_thing_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"data")
    code, _, err = run("-", "-p", "-", "--quiet")
    assert code == 2
    assert "cannot be both a picture and the question" in err
    pipe(monkeypatch, b"data")
    assert "standard input is a picture only once" in run("-", "-", "-p", "x", "--quiet")[2]
    pipe(monkeypatch, b"")
    assert "no question" in run("--quiet")[2]
    pipe(monkeypatch, b"")
    assert run("-", "-p", "x", "--quiet")[0] == 1
    pipe(monkeypatch, b"\xff\xfe")
    assert "not UTF-8" in run("--quiet")[2]


@pytest.mark.parametrize(
    ("arguments", "limit", "words"),
    [
        (["-", "-p", "x"], "qvl.processing.media.PICTURE_BYTES", "a picture from standard input is larger"),
        (["--video", "-", "-p", "x"], "qvl.processing.media.CLIP_BYTES", "a clip from standard input is larger"),
    ],
)
def test_a_pipe_that_does_not_end_is_not_read_to_its_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], limit: str, words: str
) -> None:
    monkeypatch.setattr(limit, 1000)
    pipe(monkeypatch, b"x" * 1000)
    assert run(*arguments, "--quiet")[0] == 0
    pipe(monkeypatch, b"x" * 5000)
    code, out, err = run(*arguments, "--quiet")
    assert (code, out) == (1, "")
    assert words in err and "1000 bytes" in err and err.count("\n") == 1
    assert len(sys.stdin.buffer.read()) == 3999


def test_warnings_of_libraries_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*_: object) -> None:
        import warnings

        warnings.warn("take care", UserWarning, stacklevel=1)

    monkeypatch.setattr(sys.modules["qvl.runtime.engine"].Engine, "check_memory", noisy)
    assert run("-p", "x", "--profile", "2b")[2] == "qvl: warning: take care\n"
    assert run("-p", "x", "--profile", "demo", "--quiet")[2] == ""


@pytest.mark.parametrize("content", ['""', "[]", '[""]', '[{"type": "text", "text": ""}]'])
def test_a_turn_that_says_nothing_is_a_wrong_request(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "chat.json").write_text(f'[{{"role": "user", "content": {content}}}]')
    code, out, err = run("--messages", str(tmp_path / "chat.json"), "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "message 0: the content is empty" in err


def test_an_error_is_not_preceded_by_the_demo_model_answers(run: Run, script: Script) -> None:
    script.prompt_error = MediaError("no good")
    assert run("-p", "x")[2] == "qvl: error: no good\n"
    script.prompt_error, script.memory_error = None, MemoryLimitError("too big")
    assert run("-p", "x")[2] == "qvl: error: too big\n"


def test_trying_out_the_file_of_a_drawing_leaves_nothing_behind(
    run: Run, script: Script, picture: str, tmp_path: Path
) -> None:
    script.prompt_error = MediaError("no good")
    (tmp_path / "old.png").write_bytes(b"mine")
    for name in ("new.png", "old.png"):
        assert run(picture, "-p", "x", "--boxes", str(tmp_path / name))[0] == 1
    assert not (tmp_path / "new.png").exists()
    assert (tmp_path / "old.png").read_bytes() == b"mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder where nobody can make files")
def test_a_folder_that_refuses_the_drawing_is_found_before_the_run(run: Run, script: Script, picture: str) -> None:
    code, out, err = run(picture, "-p", "x", "--boxes", "/proc/self/out.png")
    assert (code, out) == (2, "")
    assert "--boxes /proc/self/out.png: cannot be written" in err
    assert script.load == {}
