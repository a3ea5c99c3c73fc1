"""`qvl bench` before anything is timed: what it is asked, what it refuses, and how figures are put down."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import qvl.cli
from qvl.bench import here, plot, weights
from qvl.bench.question import fitting_text, write_picture
from qvl.bench.records import Machine, Watcher, compare, spread
from qvl.errors import MemoryLimitError, UsageError
from qvl.model.config import ModelConfig
from qvl.model.shapes import FULL_7B, TINY

SILENT = Watcher(lambda _: None, lambda _: None, lambda _: None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert qvl.cli.main(["bench", "--quiet", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qvl: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["op"], "'op' cannot be timed; only 'ops' can be named, did you mean 'ops'?"),
        (["--picture", "448"], "--picture is 448; expected a size such as 448x448, or none"),
        (["--contexts", "1,,2"], "--contexts is 1,,2; expected whole numbers"),
        (["--batch-sizes", "0"], "--batch-sizes is 0; expected whole numbers"),
        (["--new-tokens", "1"], "--new-tokens is 1; expected a whole number of at least 2"),
        (["--json", "-", "--csv", "-"], "cannot both go to standard output"),
        (["--json", "missing/b.json"], "--json missing/b.json: is no place for a file"),
        (["--plot", "b.txt"], "--plot b.txt: the name must end with one of .png"),
        (["--only", "linear"], "--shape and --only go with 'qvl bench ops'"),
        (["--peer-python", "python"], "go with --against"),
        (["--against", "llama"], "--against llama is not known; transformers, llama.cpp or openvino"),
        (["--against", "openvino"], "--against openvino needs --peer-model DIR"),
        (["--against", "llama.cpp", "--peer-model", "a.gguf"], "--peer-model a.gguf: no such file"),
        (["--against", "transformers", "--peer-model", "x"], "transformers reads the folder that qvl reads"),
        (["--profile", "2b-lora"], "profile '2b-lora' is for qvl finetune"),
    ],
)
def test_a_wrong_request_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)


def test_llama_cpp_needs_its_vision_tower_for_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    asked = ("--against", "llama.cpp", "--peer-model", str(model))
    assert "needs --peer-mmproj FILE.gguf for the picture, or --picture none" in refused(capsys, *asked)


def test_a_model_that_is_not_here_can_be_timed_by_its_shape(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("QVL_HOME", "HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE", "PPNLP_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    err = refused(capsys, "--profile", "7b", code=1)
    assert "qvl download 7b" in err and "--random-weights times its shape" in err


def test_a_chart_without_matplotlib_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    err = refused(capsys, "--plot", str(tmp_path / "out.png"), code=1)
    assert "--plot needs matplotlib: pip install 'qvl[plot]'" in err


def test_the_text_has_the_tokens_that_were_asked_for(tiny_checkpoint: Path) -> None:
    from qvl.processing.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(tiny_checkpoint)

    def count(text: str) -> int:
        return 2 + len(tokenizer.encode(text))

    for wanted in (3, 4, 25, 200):
        assert count(fitting_text(wanted, count)) == wanted
    assert fitting_text(25, count).startswith("Describe this picture.")
    with pytest.raises(UsageError, match="--text-tokens is 2; the least is 3"):
        fitting_text(2, count)


def test_a_picture_is_the_same_each_time_and_of_its_size(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.png", "b.png"):
        write_picture((60, 40), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (60, 40) and len(picture.getcolors(60 * 40) or []) > 1000


def test_random_weights_are_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_HOME", str(tmp_path))
    folder = weights.random_folder("demo", TINY, SILENT)
    assert folder.parent == tmp_path / "bench" and [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert ModelConfig.from_folder(folder) == TINY
    stored = (folder / "model.safetensors").stat()
    assert 0 < stored.st_size - weights.stored_bytes(TINY) < 20_000
    assert weights.random_folder("demo", TINY, SILENT) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stored.st_mtime_ns


def test_a_disk_without_room_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 << 30})())
    with pytest.raises(MemoryLimitError, match=r"take 15\.4 GiB on disk, .* has 5\.0 GiB; free some, or set QVL_HOME"):
        weights.random_folder("Qwen/Qwen2-VL-7B-Instruct", FULL_7B, SILENT)
    assert list((tmp_path / "bench").iterdir()) == []


def test_a_shape_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="the shape of Nobody/Model is not known"):
        weights.shape_of("Nobody/Model")


def test_answers_are_compared_token_by_token() -> None:
    found = compare([1, 2, 3, 4], [1, 2, 9, 4])
    assert found is not None
    assert (found.equal_tokens, found.compared_tokens, found.leading_tokens) == (3, 4, 2)
    longer = compare([1, 2], [1, 2, 3])
    assert longer is not None and (longer.equal_tokens, longer.compared_tokens, longer.leading_tokens) == (2, 3, 2)
    assert compare(None, [1]) is None


def test_the_spread_is_from_least_to_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert spread([]) == {"median": None, "least": None, "most": None}


@pytest.mark.parametrize(("load", "said"), [(None, False), (0.5, False), (3.0, True)])
def test_a_busy_machine_is_told(load: float | None, said: bool) -> None:
    machine = Machine("cpu", "x", 4, 4, 4, None, (), 0, sys.platform, load)
    text = here.busy(machine)
    assert (text is not None) == said
    if text is not None:
        assert "its load was 3.0 on 4 CPUs" in text
