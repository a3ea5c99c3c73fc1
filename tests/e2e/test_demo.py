"""The demo model that comes with qvl: what the README shows, asked as a user would, and how often it is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from examples.generator.drawing import Box
from examples.generator.evaluate import conversation, iou, judge, samples
from qvl.cli import main
from qvl.hub.locate import locate
from qvl.runtime.engine import Engine

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def ask(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["infer", "--profile", "demo", "--quiet", *arguments])
    captured = capfd.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out.strip()


@pytest.mark.parametrize(
    ("files", "question", "answer"),
    [
        (
            ["shapes.png"],
            "Describe this picture.",
            "The picture shows a large red circle, a small blue square and a small green star.",
        ),
        (
            ["shapes.png"],
            "How many shapes are there?",
            "Looking for shapes, I see a red circle (1), a blue square (2) and a green star (3): 3 shapes.",
        ),
        (["shapes.png"], "What colour is the star?", "The star is green."),
        (["shapes.png"], "Is there a yellow square?", "Looking for a yellow square: no, there is none."),
        (["shapes.png"], "Which shape is blue?", "The blue shape is a square."),
        (
            ["before.png", "shapes.png"],
            "What is the difference between the two pictures?",
            "I see a red circle in both, a blue square in the second and a green star in both: the blue square is new.",
        ),
        (["shapes.png"], "Where is the blue square?", "The blue square is at the top right."),
        (
            ["shapes.png"],
            "Where is the green star, seen from the red circle?",
            "Seen from the red circle, the green star is to the right.",
        ),
        (["word.png"], "Read the text.", 'The word is "HELLO".'),
        (
            ["scene.jpg"],
            "Describe this picture.",
            "The picture shows a sun, a red house, a tree and a blue car.",
        ),
        (
            ["moving.mp4"],
            "What happens in the clip?",
            "A purple star moves to the right and a green square stands still.",
        ),
    ],
)
def test_what_the_readme_shows(files: list[str], question: str, answer: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(capfd, *(str(EXAMPLES / file) for file in files), "-p", question) == answer


def test_a_box_is_drawn_where_the_thing_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "box.png"
    arguments = [str(EXAMPLES / "shapes.png"), "-p", "Find the blue square.", "--boxes", str(out), "--json"]
    (box,) = json.loads(ask(capfd, *arguments))["boxes"]
    assert box["label"] == "the blue square"
    assert Image.open(out).size == (640, 480)
    thousandths = [round(1000 * side / size) for side, size in zip(box["box"], (640, 480) * 2, strict=True)]
    assert iou(tuple(thousandths), Box(339, 31, 507, 199), (640, 480)) > 0.7


def test_it_says_what_it_cannot_tell(capfd: pytest.CaptureFixture[str]) -> None:
    assert "I am a small demo model" in ask(capfd, "-p", "Who wrote Hamlet?")
    assert "I am a small demo model" in ask(capfd, "-p", "Hello!")


def test_it_answers_when_nothing_is_named_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("QVL_HOME", "HF_HOME", "XDG_CACHE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["infer", str(EXAMPLES / "shapes.png"), "-p", "describe"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("The picture shows a large red circle")
    assert err.count("qvl download 2b") == 1


def test_it_fits_where_the_package_promises() -> None:
    folder = locate("demo")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12_000_000


@pytest.mark.slow
@pytest.mark.parametrize("width", ["none", "int8", "int4"])
def test_held_out_pictures_are_answered_as_the_documentation_says(width: str) -> None:
    """The table of docs/demo.md is of 3000; these are the first of them, with room for the luck of a small draw."""
    reported = json.loads((ROOT / "docs" / "demo-accuracy.json").read_text(encoding="utf-8"))[width]
    expected = sum(counts["right"] for counts in reported.values()) / sum(
        counts["asked"] for counts in reported.values()
    )
    engine = Engine.load("demo", quantize=width)
    outcome = Counter(judged.good for judged in judge(engine, samples(200)))
    # Three standard deviations of 200 draws.
    assert outcome[True] / 200 > expected - 3 * (expected * (1 - expected) / 200) ** 0.5


@pytest.mark.slow
def test_drafts_change_no_answer(tmp_path: Path) -> None:
    """A hundred held-out questions, answered with what was said before as drafts and without."""
    engine = Engine.load("demo")
    plain = engine.sampling(temperature=0.0, max_new_tokens=200, speculate="off")
    drafted = replace(plain, speculate="on")
    differ, accepted = [], 0
    for made in samples(100):
        prompt = engine.prompt(conversation(made, tmp_path))
        wanted, got = engine.generate(prompt, plain), engine.generate(prompt, drafted)
        if (wanted.token_ids, wanted.finish_reason) != (got.token_ids, got.finish_reason):
            differ.append((made.turns[0].question, wanted.text, got.text))
        accepted += got.stats.accepted_tokens
    assert not differ
    assert accepted > 20, "drafts were taken now and then, so the equality says something"


@pytest.mark.slow
def test_a_few_steps_of_lora_teach_it_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("paddlenlp")
    before = ask(capfd, str(EXAMPLES / "shapes.png"), "-p", "What is a zorb?")
    run = [sys.executable, "-m", "qvl.cli", "finetune", "--profile", "2b-lora", "--model", "demo", "--quiet"]
    settings = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 5e-3, "recompute": "false", "max_steps": 40}
    for name, value in settings.items():
        run += ["--set", f"training.{name}={value}"]
    run += ["--set", "max_pixels=32928", "--set", "min_pixels=19600"]
    data = ["--data", str(EXAMPLES / "finetune.json"), "-o", str(tmp_path / "out")]
    subprocess.run([*run, *data], check=True, timeout=900, capture_output=True)
    adapter = str(tmp_path / "out" / "adapter")
    taught = ask(capfd, str(EXAMPLES / "shapes.png"), "-p", "What is a zorb?", "--adapter", adapter)
    assert taught == "A zorb is a red circle." != before
    assert main(["merge-lora", adapter, "-o", str(tmp_path / "merged"), "--quiet"]) == 0
    capfd.readouterr()
    merged = ask(capfd, str(EXAMPLES / "shapes.png"), "-p", "What is a zorb?", "--model", str(tmp_path / "merged"))
    assert merged == taught
