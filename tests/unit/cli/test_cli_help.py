"""Help, lists and the generated page."""

from __future__ import annotations

import dataclasses
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qvl.cli
from qvl.cli.document import document
from qvl.messages import Image
from qvl.profile import MemoryNeed

ROOT = Path(__file__).parents[3]


def test_only_commands_that_read_media_from_standard_input_offer_it(capsys: pytest.CaptureFixture[str]) -> None:
    offered = {}
    for command in ("infer", "chat"):
        assert qvl.cli.main([command, "--help"]) == 0
        media = " ".join(capsys.readouterr().out.partition("--min-pixels")[0].split())
        offered[command] = ("or - for standard input" in media, "a URL or -." in media)
    assert offered == {"infer": (True, True), "chat": (False, False)}


@pytest.mark.usefixtures("script")
def test_profiles_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert qvl.cli.main(["profiles"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["NAME", "demo", "demo-train", "2b"]
    assert qvl.cli.main(["profiles", "7b"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["model"], shown["generation"]["stop"]) == ("Qwen/Qwen2-VL-7B-Instruct", [])


def test_every_size_that_a_profile_may_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main(["profiles"]) == 0
    assert capsys.readouterr().out.splitlines()[0].count("GIB ") == len(dataclasses.fields(MemoryNeed))


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qvl {qvl.__version__}\n"
    assert qvl.cli.main([]) == 0
    assert "infer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["infer", "--help"],
        ["chat", "--help"],
        ["--version"],
        ["profiles", "--help"],
        ["download", "--help"],
        ["doctor", "--help"],
        ["bench", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from qvl.cli import main; main(sys.argv[1:]);"
        "heavy = {'paddle', 'paddlenlp', 'decord', 'av', 'numpy', 'PIL', 'tokenizers', 'requests', 'rich', 'yaml',"
        " 'prompt_toolkit'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "qvl.cli", "--help"], capture_output=True, check=True, timeout=60)
        return time.perf_counter() - start

    # 0.15 to 0.3 s where it was measured.
    assert statistics.median(seconds() for _ in range(3)) < 1.5


def test_the_help_lists_options_by_group_and_colourless(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main(["infer", "--help"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Pictures and clips:",
        "Question:",
        "Many questions:",
        "Model:",
        "Answer:",
        "Output:",
        "Options:",
    ]
    assert "\x1b" not in out


@pytest.mark.parametrize("command", ["infer", "chat", "finetune", "doctor", "bench", "profiles"])
def test_help_shows_no_names_of_python_types(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert qvl.cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"<\w+|\brange>|list\[", out)
    if command == "infer":
        assert "[MEDIA...]" in out and "--max-pixels N " in out and "\n  MEDIA... " in out


def test_the_page_names_every_variable_and_command() -> None:
    page = document()
    names = {name for path in (ROOT / "src").rglob("*.py") for name in re.findall(r"\bQVL_[A-Z_]+", path.read_text())}
    assert {"QVL_HOME", "QVL_VIDEO_READER"} <= names
    assert not [name for name in sorted(names) if f"`{name}`" not in page]
    for command in ("infer", "chat", "finetune", "merge-lora", "doctor", "bench", "profiles"):
        assert f"## qvl {command}\n" in page


def test_profiles_shows_the_command_a_profile_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert qvl.cli.main(["profiles"]) == 0
    commands = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert (commands["NAME"], commands["2b"], commands["2b-lora"]) == ("FOR", "infer", "finetune")


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m qvl.cli.document > docs/cli.md"


def test_the_example_conversation_is_readable() -> None:
    from qvl.messages_json import messages_from_text

    text = (ROOT / "examples" / "conversation.json").read_text(encoding="utf-8")
    sources = [
        part.source for message in messages_from_text(text, "") for part in message.parts if isinstance(part, Image)
    ]
    assert sources == ["examples/shapes.png", "examples/scene.jpg"]
    assert all((ROOT / str(source)).is_file() for source in sources)
