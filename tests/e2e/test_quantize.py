"""`qvl quantize`, and quantised weights in every command that answers: the real program on a tiny checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qvl.model.quantization import WIDTHS, Quantization, stored_quantization
from tests.e2e.running import Run, tokens
from tests.golden import GOLDEN, MEDIA

pytestmark = pytest.mark.slow  # programs are started

PICTURE = str(MEDIA / "70x98.png")
QUESTION = (PICTURE, "-p", "What colour is it?", "--temperature", "0", "--max-new-tokens", "8", "--json")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_quantised_folder_answers_as_weights_quantised_on_load(
    width: str, qvl: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "quantised"
    code, said, err = qvl("quantize", str(tiny_checkpoint), "-o", str(out), "--quant", width)
    assert (code, said) == (0, f"{out}\n") and f"{width} weights of" in err
    on_load = tokens(qvl("infer", "--model", str(tiny_checkpoint), "--quant", width, *QUESTION))
    assert tokens(qvl("infer", "--model", str(out), *QUESTION)) == on_load
    assert tokens(qvl("infer", "--model", str(out), "--quant", width, "-q", *QUESTION)) == on_load
    assert tokens(qvl("infer", "--model", str(tiny_checkpoint), "--set", f"quantize={width}", *QUESTION)) == on_load
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"extends: 2b\nmodel: {tiny_checkpoint}\nquantize: {width}\ncache_dtype: float32\n")
    assert tokens(qvl("infer", "--profile", str(profile), *QUESTION)) == on_load
    assert [path.name for path in out.parent.iterdir()] == ["quantised"], "nothing half made is left"


def test_options_of_int4_are_kept_with_the_weights(qvl: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make = ("quantize", str(tiny_checkpoint), "-o", str(out), "-q")
    assert qvl(*make, "--group", "32", "--symmetric") == (0, f"{out}\n", "")
    assert stored_quantization(out) == Quantization.of("int4", 32, True)
    assert len(tokens(qvl("infer", "--model", str(out), *QUESTION))) > 0
    code, said, err = qvl(*make)
    assert (code, said) == (1, "") and "already there" in err and "--force" in err
    assert qvl(*make, "--force") == (0, f"{out}\n", "")
    assert stored_quantization(out) == Quantization.of("int4")


@pytest.mark.parametrize(
    ("arguments", "words", "exit_code"),
    [
        (("quantize",), "which model?", 2),
        (("quantize", "MODEL"), "--output DIR is missing", 2),
        (("quantize", "MODEL", "-o", "OUT", "--quant", "int5"), "--quant int5: one of bf16, int8, int4", 2),
        (("quantize", "MODEL", "-o", "OUT", "--group", "48"), "--group 48: one of 32, 64, 128", 2),
        (("quantize", "MODEL", "-o", "OUT", "--quant", "int8", "--group", "64"), "--group and --symmetric are", 2),
        (("quantize", "MODEL", "-o", "OUT", "--layout", "torch"), "--layout torch: hf or paddle", 2),
        (("quantize", "no/such", "-o", "OUT"), "no/such is not on this machine", 1),
        (
            ("infer", "--model", "MODEL", "--quant", "int5", "-p", "Hi"),
            "--quant: quantize is 'int5'; expected one of",
            2,
        ),
        (("infer", "--model", "MODEL", "--cache-dtype", "int4", "-p", "Hi"), "--cache-dtype: cache_dtype is 'int4'", 2),
        (("chat", "--model", "MODEL", "--quant", "int5"), "--quant: quantize is 'int5'", 2),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: tuple[str, ...], words: str, exit_code: int, qvl: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    places = {"MODEL": str(tiny_checkpoint), "OUT": str(tmp_path / "out")}
    code, out, err = qvl(*(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (exit_code, "")
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_width_than_the_folders_is_explained(qvl: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert qvl("quantize", str(tiny_checkpoint), "-o", out, "-q")[0] == 0
    code, said, err = qvl("infer", "--model", out, "--quant", "int8", "-p", "Hi")
    assert (code, said) == (2, "") and "quantised to int4; --quant int8 takes the original" in err
    adapter = str(GOLDEN / "adapter" / "language")
    code, said, err = qvl("merge-lora", adapter, "--base", out, "-o", str(tmp_path / "merged"))
    assert (code, said) == (1, "") and "quantised to int4; merging takes the original" in err
    adapted = tokens(qvl("infer", "--model", out, "--adapter", adapter, *QUESTION))
    assert adapted != tokens(qvl("infer", "--model", out, *QUESTION))


def test_a_batch_gives_what_single_questions_give(qvl: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = ("infer", "--model", str(tiny_checkpoint), "--quant", "int8", "--cache-dtype", "bfloat16", "-q")
    drawn = ("--temperature", "0", "--max-new-tokens", "8")
    prompts = ["What is it?", "And where?", "Why, and for how long?"]
    records = tmp_path / "batch.jsonl"
    records.write_text("".join(json.dumps({"prompt": text, "images": [PICTURE]}) + "\n" for text in prompts))
    out = tmp_path / "out.jsonl"
    assert qvl(*run, "--batch", str(records), "-o", str(out), *drawn)[0] == 0
    answers: list[dict[str, Any]] = [json.loads(line) for line in out.read_text().splitlines()]
    alone = [qvl(*run, PICTURE, "-p", text, *drawn)[1].removesuffix("\n") for text in prompts]
    assert [answer["text"] for answer in answers] == alone
    code, _, err = qvl(*run, "--quant", "int4", "--batch", str(records), "-o", str(out), *drawn)
    assert code == 2 and "settings" in err, "another width is not mixed into the same file"


def test_a_conversation_gives_what_single_questions_give(qvl: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_checkpoint), "--quant", "int8", "--cache-dtype", "int8"]
    options += ["--temperature", "0", "--max-new-tokens", "6"]
    command = [sys.executable, "-m", "qvl.cli", "chat", *options]
    lines = "Hello\n/model\n/undo\nHow are you?\n"
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, encoding="utf-8", timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "int8" in done.stdout + done.stderr
    for question in ("Hello", "How are you?"):
        assert qvl("infer", *options, "-q", "-p", question)[1].strip() in done.stdout
