"""The smaller parts of a conversation: completion, history, clipboard, editor, marks, what is kept of pictures."""

from __future__ import annotations

import signal
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from qvl.cli.chat import clipboard, editor
from qvl.cli.chat.completion import offers
from qvl.cli.chat.history import KeptHistory, history_file
from qvl.cli.chat.interrupt import stopping
from qvl.cli.chat.model import Memory
from qvl.cli.chat.plain import aligned, is_open
from qvl.errors import MediaError, UsageError
from qvl.messages import Image
from qvl.processing.prompt import Vision

Tool = Callable[[str, str], None]


def completed(before: str) -> list[str]:
    """The lines that Tab would make of one."""
    return [before[: len(before) - offer.length] + offer.text for offer in offers(before, lambda: ["demo", "2b"])]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat.png", "notes.txt", "my clip.mp4", ".hidden.png", "sub/dog.jpg", "it's.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("/he", ["/help "]),
        ("/ex", ["/export ", "/exit"]),
        ("/set temp", ["/set temperature"]),
        ("/set temperature 0", []),
        ("/model d", ["/model demo"]),
        ("/help sa", ["/help save"]),
        ("/image c", ["/image cat.png"]),
        ("/image n", []),
        ("/load n", ["/load notes.txt"]),
        ("/image sub/", ["/image sub/dog.jpg"]),
        ("What is in ca", ["What is in cat.png"]),
        ("What is in ", []),
        ("s", ["sub/"]),
        ("~/c", ["~/cat.png"]),
        ("my", ["my\\ clip.mp4"]),
        ("my\\ c", ["my\\ clip.mp4"]),
        ('"my c', ['"my clip.mp4"']),
        ("it", ["it\\'s.png"]),
        ("nowhere/x", []),
        (".h", [".hidden.png"]),
    ],
)
def test_tab_offers_what_fits(before: str, expected: list[str]) -> None:
    assert completed(before) == expected


def test_history_is_kept_between_runs_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "home"))
    path = history_file()
    assert path is not None
    KeptHistory(path).store_string("one\ntwo")
    KeptHistory(path).store_string("three")
    assert list(KeptHistory(path).load_history_strings()) == ["three", "one\ntwo"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "chat-history", tmp_path):  # below a file; a folder
        history = KeptHistory(path)
        history.store_string("one")
        assert list(history.load_history_strings()) == []


def test_a_long_history_loses_its_older_half(tmp_path: Path) -> None:
    path = tmp_path / "chat-history"
    history = KeptHistory(path)
    for number in range(600):
        history.store_string(f"{number} " + "x" * 2000)
    assert path.stat().st_size > 1 << 20
    kept = list(KeptHistory(path).load_history_strings())
    assert kept[0].startswith("599 ") and 200 < len(kept) < 400
    assert all(len(entry.split()[1]) == 2000 for entry in kept)


def test_the_state_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QVL_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert history_file() == tmp_path / "qvl" / "chat-history"


def test_of_a_shared_home_the_history_of_somebody_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    monkeypatch.setattr("sys.platform", "linux")
    shared = tmp_path / "shared" / "chat-history"
    assert history_file() == shared
    shared.parent.mkdir()
    shared.touch(mode=0o600)
    assert history_file() == shared
    monkeypatch.setattr("os.access", lambda *_: False)
    assert history_file() == tmp_path / "mine" / "qvl" / "chat-history"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """`tool(name, script)` puts a program on a path that has nothing else but the shell's own."""
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def test_a_picture_is_pasted_from_wayland_and_x(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PILImage.new("RGB", (3, 2)).save(tmp_path / "a.png")
    tool("wl-paste", f'case "$*" in *list*) echo text/plain; echo image/png;; *) /bin/cat {tmp_path}/a.png;; esac')
    tool("xclip", f'case "$*" in *TARGETS*) echo image/png;; *image/png*) /bin/cat {tmp_path}/a.png;; esac')
    for display in ("WAYLAND_DISPLAY", "DISPLAY"):
        with monkeypatch.context() as patch:
            patch.setenv(display, ":0")
            assert clipboard.picture() == (tmp_path / "a.png").read_bytes()


def test_paste_says_what_is_missing(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no clipboard here"):
        clipboard.picture()
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(UsageError, match="needs xclip, which is not installed"):
        clipboard.picture()
    monkeypatch.setenv("WAYLAND_DISPLAY", "w")
    with pytest.raises(UsageError, match="wl-clipboard"):
        clipboard.picture()
    tool("wl-paste", "echo text/plain")
    with pytest.raises(MediaError, match="holds no picture"):
        clipboard.picture()
    tool("wl-paste", "exit 1")
    with pytest.raises(MediaError, match="holds no picture"):
        clipboard.picture()


def test_paste_grabs_the_picture_where_pillow_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageGrab

    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: PILImage.new("RGB", (3, 2)))
    assert clipboard.picture().startswith(b"\x89PNG")
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: None)
    with pytest.raises(MediaError, match="holds no picture"):
        clipboard.picture()
    copied = tmp_path / "a.jpg"
    PILImage.new("CMYK", (3, 2)).save(copied)
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: [str(tmp_path), str(copied)])
    assert clipboard.picture() == copied.read_bytes()
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: [str(tmp_path)])
    with pytest.raises(MediaError, match="holds no picture"):
        clipboard.picture()


def test_an_editor_changes_a_text_or_gives_it_up(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "ed --wait")
    with pytest.raises(UsageError, match="ed: cannot be run"):
        editor.edited("text")
    tool("ed", '[ "$1" = --wait ] && echo more >> "$2"')
    assert editor.edited("text") == "text\nmore"
    tool("ed", "exit 1")
    assert editor.edited("text") is None
    assert not list(tmp_path.glob("qvl-*"))


def test_pictures_are_remembered_up_to_a_limit() -> None:
    memory = Memory(limit_bytes=2 * 4 * 100)

    def vision() -> Vision:
        return Vision("image", np.zeros((1, 100), np.float32), (1, 1, 1), (1, 1))

    parts = [Image(str(number)) for number in range(3)]
    for part in parts[:2]:
        memory.put(part, vision())
    assert memory.get(parts[0]) is not None  # and so it is the younger one
    memory.put(parts[2], vision())
    assert [memory.get(part) is not None for part in parts] == [True, False, True]


def test_ctrl_c_asks_for_the_end_of_an_answer_and_the_second_time_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping() as stopper:
        with pytest.raises(KeyboardInterrupt):  # no word has come yet
            signal.raise_signal(signal.SIGINT)
        stopper.begun = True
        signal.raise_signal(signal.SIGINT)
        assert stopper.stopped
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_lines_between_quotation_marks_belong_together() -> None:
    assert [is_open(text) for text in ('"""', '"""a', '"""a\nb', 'a"""', "")] == [True, True, True, False, False]
    assert [is_open(text) for text in ('"""a"""', '"""\na\n"""', '""""""')] == [False] * 3


def test_rows_stand_below_each_other() -> None:
    assert aligned([("a", "1"), ("long", "2\n3")]) == ["a     1", "long  2\n      3"]
