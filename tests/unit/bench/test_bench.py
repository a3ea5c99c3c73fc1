"""`qvl bench` before anything is timed: what it is asked, what it refuses, and how figures are put down."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

import qvl.cli
from qvl.bench import here, plot, tables, weights
from qvl.bench.question import fitting_text, write_picture
from qvl.bench.records import Machine, Record, Row, Side, Watcher, compare, spread
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
        (["--json", "missing/b.json"], "--json missing/b.json: there is no folder missing"),
        (["--json", "b.out", "--csv", "b.out"], "--json, --csv and --plot cannot be the same file"),
        (["--csv", "/proc/qvl.csv"], "--csv /proc/qvl.csv: cannot be written"),
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
    monkeypatch.setattr("qvl.cli.paths.find_spec", lambda _name: None)
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


def beside_a_peer() -> Record:
    """qvl twice as fast as its peer, which does not tell its stages apart."""
    rows = []
    for side, seconds, speed in (("qvl", 2.0, 20.0), ("rival", 4.0, 10.0)):
        known = (seconds - 1, seconds - 1) if side == "qvl" else ()
        rows += [
            Row(side, "load", "s", (seconds, seconds + 1)),
            Row(side, "vision", "s", known, note="not told apart"),
            Row(side, "first_token", "s", (seconds / 10, seconds / 10)),
            Row(side, "decode", "tokens/s", (speed, speed), context=64, batch=1),
            Row(side, "peak_memory", "bytes", (seconds * 2**30,)),
        ]
    question = {"picture": None, "prompt_tokens": 9, "new_tokens": 4}
    settings = {"profile": "2b", "model": "m", "random_weights": True, "dtype": "float32", "device": "cpu"}
    return Record(
        kind="model",
        date="2026-01-01",
        machine=Machine("A CPU", "x", 4, 4, 4, None, (), 0, "Linux", None),
        threads=4,
        versions={"qvl": "1"},
        settings={**settings, "quantize": "none", "question": question, "repeats": 2, "warmup": 1},
        sides=[Side("qvl", {"qvl": "1"}, {"ops": {"body": "native", "level": "avx2"}}), Side("rival", {"rival": "7"})],
        turns="restarted",
        rows=rows,
        comparison=compare([1, 2, 3, 4], [1, 2, 9, 4]),
    )


def test_the_table_puts_both_sides_and_their_ratio_in_a_line() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200, highlight=False, markup=False)
    for part in tables.render(beside_a_peer()):
        console.print(part)
    lines = {" ".join(line.split()) for line in text.getvalue().splitlines()}
    assert "against rival 7, taking turns, each started anew for its turns" in lines
    assert "2b: m, random weights, float32 on cpu, quantize none, native ops (avx2)" in lines
    assert "load 2.50 s 2.00 to 3.00 4.50 s 4.00 to 5.00 0.56" in lines
    assert "first token 200.0 ms 200.0 to 200.0 400.0 ms 400.0 to 400.0 0.50" in lines
    assert "vision tower 1.00 s 1.00 to 1.00 - -" in lines
    assert "decode behind 64, 1 at a time 20.00 tokens/s 20.00 to 20.00 10.00 tokens/s 10.00 to 10.00 2.00" in lines
    assert "peak memory 2.00 GiB 2.00 to 2.00 4.00 GiB 4.00 to 4.00 0.50" in lines
    assert "- of rival: not told apart" in lines
    assert "answers: 3 of 4 tokens are equal, 2 before the first that is not" in lines


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_chart_of_two_sides(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"chart.{ending}"
    plot.draw(beside_a_peer(), out)
    assert out.stat().st_size > 5000
    if ending == "svg":
        assert "vision and prefill" in out.read_text() and "rival" in out.read_text()


@pytest.mark.parametrize(("load", "said"), [(None, False), (0.5, False), (3.0, True)])
def test_a_busy_machine_is_told(load: float | None, said: bool) -> None:
    machine = Machine("cpu", "x", 4, 4, 4, None, (), 0, sys.platform, load)
    text = here.busy(machine)
    assert (text is not None) == said
    if text is not None:
        assert "its load was 3.0 on 4 CPUs" in text
