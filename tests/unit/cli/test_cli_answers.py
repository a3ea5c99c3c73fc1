"""What `qvl infer` is asked and what it prints."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from scripted import MARKED, STATS, Run, Script, pipe

import qvl.cli
from qvl.messages import Image, Text, Video
from qvl.runtime.records import Sampling

ROOT = Path(__file__).parents[3]


def test_stdout_is_the_answer_and_nothing_else(run: Run, script: Script, picture: str) -> None:
    code, out, err = run(picture, "-p", "What is it?", "--stats")
    assert (code, out) == (0, "A cat.\n")
    assert "6.0 tokens/s" in err
    assert script.question == (Image(picture), Text("What is it?"))


def test_a_loop_that_was_ended_is_told_and_so_are_drafts(run: Run, script: Script, picture: str) -> None:
    script.finish_reason = "loop"
    script.stats = replace(STATS, reused_tokens=7, reused_visions=1, drafted_tokens=40, accepted_tokens=30)
    flags = ("--stop-loops", "--speculate", "on")
    code, out, err = run(picture, "-p", "Read it.", "--stats", *flags)
    assert (code, out) == (0, "A cat.\n")
    assert "qvl: the answer went round in a loop and was ended there\n" in err
    assert "3 tokens (loop)" in err and "30 of 40 tokens accepted (75 %)" in err
    assert "7 tokens of the prompt, 1 pictures and clips" in err
    assert script.sampling == Sampling(stop_loops=True, speculate="on")
    code, out, err = run(picture, "-p", "Read it.", "--json", "--quiet", *flags)
    answer = json.loads(out)
    assert (answer["finish_reason"], answer["stats"]["accepted_tokens"]) == ("loop", 30) and err == ""


def test_an_answer_that_ends_its_line_gets_no_second_newline(run: Run, script: Script) -> None:
    script.texts = ("a\n", "b\n")
    assert run("-p", "x")[1] == "a\nb\n"
    script.texts = ("",)
    assert run("-p", "x")[1] == "\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "? caf? ?"), ("cp1252", "? café ?"), ("utf-8", "猫 café ✓")])
def test_an_answer_survives_a_terminal_that_lacks_its_characters(
    script: Script, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    script.texts = ("猫 ", "café ", "✓")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert qvl.cli.main(["infer", "-p", "x", "--quiet"]) == 0
    assert stdout.buffer.getvalue().decode(encoding) == shown + "\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("encoding", "escaped"), [("ascii", True), ("cp1252", True), ("utf-8", False)])
def test_json_is_escaped_where_stdout_is_not_unicode(
    script: Script, monkeypatch: pytest.MonkeyPatch, encoding: str, escaped: bool
) -> None:
    script.texts = ("猫 ", "café")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert qvl.cli.main(["infer", "-p", "x", "--quiet", "--json"]) == 0
    line = stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert json.loads(line)["text"] == "猫 café"
    assert line.isascii() == escaped


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("DATA:image/png;base64,AAAA", Image),
        ("Data:Video/mp4;base64,AAAA", Video),
        ("HTTP://host/cat.PNG", Image),
        ("HTTPS://host/cat.MP4?x=1", Video),
    ],
)
def test_a_url_in_capitals_is_a_url(run: Run, script: Script, source: str, kind: type) -> None:
    code, _, err = run(source, "-p", "x", "--quiet")
    assert (code, err) == (0, "")
    assert script.question == (kind(source), Text("x"))


def test_quiet_leaves_stderr_empty(run: Run) -> None:
    assert run("-p", "x", "--quiet") == (0, "A cat.\n", "")


def test_the_fallback_to_the_demo_model_is_said_once(run: Run, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, err = run("-p", "x")
    assert script.profile.name == "demo"
    assert len(err.splitlines()) == 1
    assert "demo model" in err
    monkeypatch.setattr("qvl.cli.infer.find", lambda _model: Path("/there"))
    assert run("-p", "x")[2] == ""
    assert script.profile.name == "2b"


def test_json_is_one_object(run: Run, script: Script, picture: str) -> None:
    script.marked = MARKED
    script.texts = ("中", "文")
    code, out, _ = run(picture, "-p", "x", "--json", "--profile", "2b")
    assert code == 0
    assert out.count("\n") == 1
    assert "中文" in out
    assert json.loads(out) == {
        "text": "中文",
        "token_ids": [0, 1],
        "prompt_tokens": 12,
        "image_grid_thw": [[1, 2, 2]],
        "video_grid_thw": [],
        "finish_reason": "stop",
        "boxes": [{"label": "cat", "box": [20, 20, 100, 100], "picture": 0}],
        "stats": vars(STATS),
        "model": "Qwen/Qwen2-VL-2B-Instruct",
        "profile": "2b",
    }


def test_boxes_belong_to_the_first_picture_of_the_last_turn_that_has_one(
    run: Run, script: Script, picture: str, tmp_path: Path
) -> None:
    script.marked = MARKED
    turns = [[{"image": picture}, "a"], [{"image": picture}, {"image": picture}, "b"], ["c"]]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": turn} for turn in turns]))
    _, out, _ = run("--messages", str(tmp_path / "chat.json"), "--json")
    assert [box["picture"] for box in json.loads(out)["boxes"]] == [1]


def test_boxes_are_drawn_on_the_picture(run: Run, script: Script, picture: str, tmp_path: Path) -> None:
    script.marked = MARKED
    target = tmp_path / "out.png"
    code, out, _ = run(picture, "-p", "Find it.", "--boxes", str(target))
    assert (code, out) == (0, "A cat.\n")
    drawn = np.asarray(PILImage.open(target))
    assert drawn.shape == (100, 200, 3)
    assert (drawn != 255).any()


def test_a_drawing_without_boxes_is_the_picture_and_a_note(run: Run, picture: str, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    _, _, err = run(picture, "-p", "x", "--boxes", str(target))
    assert "no boxes" in err
    assert (np.asarray(PILImage.open(target)) == 255).all()


def test_the_question_may_be_piped_in(run: Run, script: Script, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((picture,), (picture, "-p", "-")):
        pipe(monkeypatch, b"What is {}?\r\n")
        assert run(*arguments)[0] == 0
        assert script.question == (Text("What is "), Image(picture), Text("?"))


def test_a_picture_or_a_clip_may_be_piped_in(run: Run, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"bytes")
    assert run("-", "-p", "x")[0] == 0
    assert script.question[0] == Image(b"bytes")
    pipe(monkeypatch, b"bytes")
    assert run("--video", "-", "-p", "x")[0] == 0
    assert script.question[0] == Video(b"bytes")


def test_what_is_given_in_the_call_is_not_read_from_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"never read")
    assert run("-p", "x")[0] == 0
    assert sys.stdin.read() == "never read"


def test_media_are_told_apart_and_kept_in_order(
    run: Run, script: Script, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (10, 9, 1):
        (frames / f"f{number}.png").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.MP4").touch()
    remote = ["https://host/b.webm?x=1.png", "https://host/c", "data:video/mp4;base64,AA", "data:image/png;base64,AA"]
    code, _, err = run("a.MP4", *remote, picture, "-p", "x", "--video", "frames", "--video", "frames/*.png")
    assert (code, err.count("\n")) == (0, 1)
    assert script.question == (
        Video("a.MP4"),
        Video(remote[0]),
        Image(remote[1]),
        Video(remote[2]),
        Image(remote[3]),
        Image(picture),
        Video("frames"),
        Video(tuple(str(Path("frames", name)) for name in ("f1.png", "f9.png", "f10.png"))),
        Text("x"),
    )


def test_flags_reach_profile_sampling_and_media(run: Run, script: Script, picture: str) -> None:
    flags = "--max-pixels 50176 --temperature 0 --top-k 5 --stop a --stop b --seed 0 --raw-pixels --add-vision-id"
    run(picture, "-p", "x", "--profile", "7b", "--model", "folder", "--dtype", "float16", *flags.split())
    profile = script.profile
    assert (profile.name, profile.model, profile.dtype, profile.device) == ("7b", "folder", "float16", "auto")
    assert (profile.raw_pixels, profile.add_vision_id, profile.allow_pickle) == (True, True, False)
    assert script.sampling == Sampling(temperature=0, top_k=5, stop=("a", "b"), seed=0)
    assert script.question[0] == Image(picture, max_pixels=50176)


def test_options_do_not_override_what_a_message_says(
    run: Run, script: Script, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [{"image": picture, "max_pixels": 10000}, {"image": picture}, {"video": picture, "nframes": 2}]
    pipe(monkeypatch, json.dumps({"messages": [{"role": "user", "content": content}]}).encode())
    assert run("--messages", "-", "--max-pixels", "20000", "--fps", "1")[0] == 0
    first, second, clip = script.question
    assert (first.max_pixels, second.max_pixels) == (10000, 20000)
    assert (clip.max_pixels, clip.nframes, clip.fps) == (20000, 2, None)


def test_a_published_model_brings_its_own_profile(run: Run, script: Script) -> None:
    run("-p", "x", "--model", "Qwen/Qwen2-VL-7B")
    assert script.profile.name == "7b-base"
    run("-p", "x", "--model", "72b-base")
    assert (script.profile.name, script.profile.template) == ("72b-base", "none")
    run("-p", "x", "--model", "some/folder")
    assert (script.profile.name, script.profile.model) == ("2b", "some/folder")


def test_a_profile_of_the_users_own_is_taken_when_it_is_named(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVL_CONFIG_HOME", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "a-table.yaml").write_text("extends: 7b\nmax_pixels: 3211264\n")
    run("-p", "x", "--model", "Qwen/Qwen2-VL-7B-Instruct")
    assert (script.profile.name, script.profile.max_pixels) != ("a-table", 3211264) and script.profile.name == "7b"
    run("-p", "x", "--profile", "a-table")
    assert script.profile.max_pixels == 3211264


@pytest.mark.usefixtures("script")
def test_long_data_are_no_file_name(run: Run) -> None:
    picture = "data:image/png;base64," + "A" * 10_000
    assert run(picture, "-p", "x", "--quiet") == (0, "A cat.\n", "")


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_a_setting_that_yaml_takes_for_yes_or_no(run: Run, script: Script, word: str) -> None:
    assert run("-p", "x", "--quiet", "--set", f"generation.speculate={word}")[0] == 0
    assert script.profile.generation.speculate == word


@pytest.mark.parametrize("name", ["an.gif", "an.webp", "an.png"])
def test_an_animation_after_video_is_a_clip_and_a_still_is_refused(
    run: Run, script: Script, tmp_path: Path, name: str
) -> None:
    frames = [PILImage.effect_noise((56, 56), 90).convert("RGB") for _ in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    path = str(tmp_path / name)
    code, _, err = run("--video", path, "-p", "x", "--quiet")
    assert (code, err) == (0, "")
    assert script.question == (Video(path), Text("x"))
    frames[0].save(tmp_path / name)
    code, _, err = run("--video", path, "-p", "x", "--quiet")
    assert code == 2 and "is a picture" in err


@pytest.mark.usefixtures("picture")
def test_a_path_in_the_home_folder_is_found(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run("~/cat.png", "-p", "x", "--quiet", "--boxes", "~/boxes.png") == (0, "A cat.\n", "")
    assert (tmp_path / "boxes.png").is_file()
    chat = [{"role": "user", "content": [{"image": "~/cat.png"}, "x"]}]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    assert run("--messages", "~/chat.json", "--quiet") == (0, "A cat.\n", "")
    assert script.question[0] == Image("~/cat.png")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (1, 2):
        (frames / f"{number}.png").touch()
    for source in ("~/frames", "~/frames/*.png"):
        assert run("--video", source, "-p", "x", "--quiet")[0] == 0


def test_the_keys_of_json_are_those_documented(run: Run) -> None:
    from qvl.cli.document import JSON_KEYS

    assert list(json.loads(run("-p", "x", "--json")[1])) == list(JSON_KEYS)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("script")
def test_a_terminal_shows_a_sign_of_life_that_goes_away(picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    assert qvl.cli.main(["infer", picture, "-p", "x", "--profile", "2b"]) == 0
    shown = screen.getvalue()
    erase = "\r\x1b[K"
    assert shown.startswith(f"qvl: reading pictures and clips ...{erase}")
    assert shown.endswith(f"qvl: encoding pictures, clips and the prompt, 12 tokens ...{erase}A cat.\n")


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(("terminal", "flags"), [("dumb", []), ("xterm", ["--quiet"])])
def test_a_dumb_terminal_gets_the_answer_and_no_control_codes(
    picture: str, monkeypatch: pytest.MonkeyPatch, terminal: str, flags: list[str]
) -> None:
    monkeypatch.setenv("TERM", terminal)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    assert qvl.cli.main(["infer", picture, "-p", "x", "--profile", "2b", *flags]) == 0
    assert screen.getvalue() == "A cat.\n"
