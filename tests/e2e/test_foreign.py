"""AWQ and GPTQ checkpoints in every command: the real program on tiny ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qvl.hub.random_checkpoint import TINY
from qvl.model.quantization import Quantization, Scheme, stored_quantization
from tests.e2e.running import Run, tokens
from tests.golden import GOLDEN, MEDIA
from tests.unit.foreign_support import Form, write_foreign

pytestmark = pytest.mark.slow  # programs are started

PICTURE = str(MEDIA / "70x98.png")
SHORT = ("--temperature", "0", "--max-new-tokens", "6")
QUESTION = (PICTURE, "-p", "What colour is it?", *SHORT, "--json")
FORMS = {
    "awq": Form("awq", group=32),
    "gptq-int4": Form("gptq", symmetric=True),
    "gptq-int8": Form("gptq", 8, 128, True),
}

each_form = pytest.mark.parametrize("name", FORMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def write(name: str) -> str:
        if name not in made:
            config = replace(TINY, torch_dtype="float16")
            packed, _ = write_foreign(tmp_path_factory.mktemp("foreign"), FORMS[name], config, tokenizer=True)
            made[name] = str(packed)
        return made[name]

    return write


@each_form
def test_a_copy_that_is_mapped_answers_as_the_checkpoint_does(
    name: str, qvl: Run, folder: Callable[[str], str], tmp_path: Path
) -> None:
    out, width = tmp_path / "out", "int8" if name.endswith("8") else "int4"
    answer = tokens(qvl("infer", "--model", folder(name), *QUESTION))
    code, said, err = qvl("quantize", folder(name), "-o", str(out))
    assert (code, said) == (0, f"{out}\n") and f"{width} weights of" in err
    stored = stored_quantization(out)
    assert stored is not None and stored.embedding is stored.vision is None
    assert tokens(qvl("infer", "--model", str(out), *QUESTION)) == answer
    assert qvl("quantize", folder(name), "-o", str(out), "--quant", width, "--force", "-q")[0] == 0
    language = Scheme("int4", 32, False) if name == "awq" else Scheme(width, 128)
    assert stored_quantization(out) == Quantization(width, language, Scheme("int8"), Scheme("int8"))
    whole = tokens(qvl("infer", "--model", folder(name), "--quant", width, *QUESTION))
    assert tokens(qvl("infer", "--model", str(out), *QUESTION)) == whole


def test_another_width_and_what_needs_the_original_are_refused(
    qvl: Run, folder: Callable[[str], str], tmp_path: Path
) -> None:
    model, out = folder("awq"), str(tmp_path / "out")
    for command in (("infer", "--model", model, "-p", "Hi"), ("quantize", model, "-o", out)):
        code, said, err = qvl(*command, "--quant", "int8")
        assert (code, said) == (2, "") and "quantised to int4 by AWQ; --quant int8 takes the original" in err
    code, said, err = qvl("quantize", model, "-o", out, "--group", "64")
    assert (code, said) == (2, "") and "what AWQ has quantised keeps its groups" in err
    adapter = str(GOLDEN / "adapter" / "language")
    code, said, err = qvl("merge-lora", adapter, "--base", model, "-o", out)
    assert (code, said) == (1, "") and "quantised to int4 by AWQ; merging takes the original" in err
    code, said, err = qvl("finetune", "--profile", "2b-lora", "--model", model, "--data", "data.json", "-o", out)
    assert code == 1 and "quantised to int4 by AWQ; fine-tuning takes the original" in err
    assert not Path(out).exists()


@pytest.mark.parametrize("part", ["language", "visual"])
def test_an_adapter_is_added_beside_them(part: str, qvl: Run, folder: Callable[[str], str]) -> None:
    run = ("infer", "--model", folder("gptq-int8"), *QUESTION)
    adapted = tokens(qvl(*run, "--adapter", str(GOLDEN / "adapter" / part)))
    assert part == "visual" or adapted != tokens(qvl(*run))


def test_a_batch_and_a_conversation_give_what_single_questions_give(
    qvl: Run, folder: Callable[[str], str], tmp_path: Path
) -> None:
    run = ("infer", "--model", folder("awq"), "-q")
    prompts = ["What is it?", "And where?"]
    records, out = tmp_path / "batch.jsonl", tmp_path / "out.jsonl"
    records.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    assert qvl(*run, "--batch", str(records), "-o", str(out), *SHORT)[0] == 0
    alone = [qvl(*run, "-p", text, *SHORT)[1].removesuffix("\n") for text in prompts]
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == alone
    command = [sys.executable, "-m", "qvl.cli", "chat", "--model", folder("awq"), *SHORT]
    done = subprocess.run(
        command, input="/model\nWhat is it?\n", capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "int4" in done.stdout + done.stderr and alone[0].strip() in done.stdout


def test_a_short_name_stands_for_the_published_checkpoint(
    qvl: Run, folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVL_HOME", str(tmp_path / "home"))
    shutil.copytree(folder("awq"), tmp_path / "home" / "models" / "Qwen" / "Qwen2-VL-2B-Instruct-AWQ")
    assert tokens(qvl("infer", "--model", "2b-awq", *QUESTION)) == tokens(
        qvl("infer", "--model", folder("awq"), *QUESTION)
    )
    code, _, err = qvl("infer", "--model", "7b-gptq-int4", "-p", "Hi")
    assert code == 1 and "Qwen/Qwen2-VL-7B-Instruct-GPTQ-Int4 is not on this machine" in err
    assert "qvl download 7b-gptq-int4" in err
    code, _, err = qvl("bench", "--model", "Qwen/Qwen2-VL-2B-Instruct-AWQ", "--random-weights")
    assert code == 2 and "is quantised, random weights are not" in err
