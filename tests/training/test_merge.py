"""Merging: what comes out is complete, strict, the base where nothing was adapted, and answers as the adapter does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvl.cli import main
from qvl.errors import CheckpointError
from qvl.model import merge
from qvl.model.checkpoint import list_tensors
from qvl.model.checkpoint_writer import STORED_NAMES
from qvl.model.merge import merge_adapter
from qvl.model.safetensors_io import SafetensorsFile, bfloat16_to_float32
from qvl.runtime import merging
from tests.conftest import CheckpointOf
from tests.golden import MEDIA, load_case
from tests.golden.cases import VARIANTS
from tests.training.test_adapters import ADAPTERS, assert_close, last_logits

LANGUAGE = ADAPTERS / "language"
PICTURE = str(MEDIA / "70x98.png")


def stored(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor in the Hugging Face layout: its dtype and its numbers as they are stored."""
    found = {}
    for name, entry in list_tensors(folder).items():
        with SafetensorsFile(entry.path) as file:
            values = next(file.rows(entry.name, entry.shape[0])).reshape(entry.shape).copy()
        turned = entry.layout == "paddle" and values.ndim == 2 and "embed_tokens" not in name
        found[name] = entry.dtype, values.T if turned else values
    return found


@pytest.mark.parametrize("variant", [*VARIANTS])
@pytest.mark.parametrize("adapter", ["language", "visual"])
def test_merged_answers_as_the_adapter_and_keeps_all_else(
    variant: str, adapter: str, checkpoint_variant: CheckpointOf, tmp_path: Path
) -> None:
    base, out = checkpoint_variant(variant), tmp_path / "out"
    merge_adapter(base, ADAPTERS / adapter, out)
    tolerance = {"bfloat16": 2e-2, "float16": 2e-3}.get(variant, 1e-5)
    assert_close(last_logits(out), last_logits(base, str(ADAPTERS / adapter)), tolerance)

    before, after = stored(base), stored(out)
    assert before.keys() == after.keys()
    adapted = {f"{name}.weight" for name in merge.Adapter.open(ADAPTERS / adapter).modules}
    for name, (dtype, values) in before.items():
        assert dtype == after[name][0]
        assert np.array_equal(values, after[name][1]) == (name not in adapted), name
    for path in base.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            assert (out / path.name).read_bytes() == path.read_bytes()
    files = sorted(path.name for path in out.glob("*.safetensors"))
    if "sharded" in variant:
        largest = max(path.stat().st_size for path in base.glob("*.safetensors"))
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files and len(files) > 1
        assert index["metadata"]["total_size"] == sum(values.nbytes for _, values in after.values())
        assert max((out / name).stat().st_size for name in files) < 1.1 * largest
    else:
        assert files == ["model.safetensors"]


def test_a_sum_is_rounded_once(checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    base, name = checkpoint_variant("bfloat16"), "model.layers.1.mlp.down_proj"
    merge_adapter(base, LANGUAGE, tmp_path / "out")
    a, b = merge.Adapter.open(LANGUAGE).factors(name)
    exact = bfloat16_to_float32(stored(base)[f"{name}.weight"][1]).astype(np.float64) + 2.0 * (b @ a)
    got = bfloat16_to_float32(stored(tmp_path / "out")[f"{name}.weight"][1])
    assert np.all(np.abs(got - exact) <= 2.0**-8 * np.abs(exact) + 1e-7)  # half a step, and float32's own rounding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", ["bfloat16", "nested"])
def test_the_dtype_can_be_chosen(form: str, dtype: str, checkpoint_variant: CheckpointOf, tmp_path: Path) -> None:
    out, base = tmp_path / "out", checkpoint_variant(form)
    merge_adapter(base, LANGUAGE, out, dtype=dtype)
    assert {kind for kind, _ in stored(out).values()} == {STORED_NAMES[dtype]}
    config = json.loads((out / "config.json").read_text())
    assert {config.get("torch_dtype"), config.get("dtype")} - {None} == {dtype}
    assert_close(last_logits(out), last_logits(base, str(LANGUAGE)), 5e-2)


def test_small_blocks_give_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    merge_adapter(tiny_checkpoint, LANGUAGE, tmp_path / "whole", on_progress=lambda *figures: seen.append(figures))
    assert seen[-1][0] == seen[-1][1] > 0
    monkeypatch.setattr(merge, "_BLOCK_BYTES", 1000)
    merge_adapter(tiny_checkpoint, LANGUAGE, tmp_path / "blocks")
    whole, blocks = stored(tmp_path / "whole"), stored(tmp_path / "blocks")
    for name, (_, values) in whole.items():
        np.testing.assert_allclose(blocks[name][1], values, rtol=1e-6, atol=1e-6)


def test_merging_files_needs_no_paddle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qvl.model.merge import merge_adapter\n"
        "merge_adapter(*map(Path, sys.argv[1:])); print({'paddle', 'paddlenlp'} & set(sys.modules))"
    )
    arguments = [str(tiny_checkpoint), str(LANGUAGE), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "set()", "")


def test_nothing_is_left_of_a_merge_that_fails(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "out"

    def fail(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file() and not out.exists()
        raise CheckpointError("not equal")

    with pytest.raises(CheckpointError, match="not equal"):
        merge_adapter(tiny_checkpoint, LANGUAGE, out, check=fail)
    assert list(out.parent.iterdir()) == []

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(10**6, 0, 10**6))
    with pytest.raises(CheckpointError, match=r"the merged model takes .* GB are free there"):
        merge_adapter(tiny_checkpoint, LANGUAGE, out)
    monkeypatch.undo()
    assert list(out.parent.iterdir()) == []

    out.mkdir()
    with pytest.raises(CheckpointError, match="already there"):
        merge_adapter(tiny_checkpoint, LANGUAGE, out)
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the base is a pickle"):
        merge_adapter(pickled, LANGUAGE, tmp_path / "other")


Answer = dict[str, Any]


def infer(capfd: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    flags = ["-p", "What colour is it?", "--json", "--quiet", "--max-new-tokens", "24", "--temperature", "0"]
    code = main(["infer", PICTURE, *flags, "--repetition-penalty", "1", "--set", "max_pixels=12845056", *arguments])
    captured = capfd.readouterr()
    assert (code, captured.err) == (0, "")
    answer: Answer = json.loads(captured.out)
    return answer


def test_the_command_from_end_to_end(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "style"
    shutil.copytree(LANGUAGE, adapter)
    assert main(["merge-lora", str(adapter)]) == 0  # the adapter names its base
    captured = capfd.readouterr()
    merged = tmp_path / "style-merged"
    assert captured.out == f"{merged}\n"
    assert "merged logits differ from the adapter's by" in captured.err
    through_adapter = infer(capfd, "--model", str(tiny_checkpoint), "--adapter", f"style={adapter}:1.0")
    assert infer(capfd, "--model", str(merged))["token_ids"] == through_adapter["token_ids"]
    assert through_adapter["token_ids"] == load_case("adapter")["language_tokens"].tolist()

    assert main(["merge-lora", str(adapter)]) == 1
    assert "style-merged: is already there" in capfd.readouterr().err
    out = tmp_path / "chosen" / "out"
    chosen = ["-o", str(out), "--base", str(tiny_checkpoint), "--dtype", "bfloat16", "--quiet"]
    assert main(["merge-lora", str(adapter), *chosen]) == 0
    assert capfd.readouterr() == (f"{out}\n", "")
    assert {dtype for dtype, _ in stored(out).values()} == {"BF16"}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", "1e-04"), ("float16", "2e-03"), ("bfloat16", "5e-03")])
def test_a_merge_that_answers_otherwise_is_refused(
    dtype: str, tolerance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    real = merge._rows

    def unmerged(target: Any, adapter: Any) -> Any:
        return real(replace(target, module=None), adapter)

    monkeypatch.setattr(merge, "_rows", unmerged)
    arguments = ["merge-lora", str(LANGUAGE), "-o", str(out), "--dtype", dtype]
    assert main(arguments) == 1
    assert f"rounding to {dtype} explains, over {tolerance}; nothing is kept" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--no-check"]) == 0 and out.is_dir()


def test_a_base_that_is_not_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "style"
    shutil.copytree(LANGUAGE, adapter)
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"qvl/tiny"', '"Somebody/Nowhere"'))
    assert main(["merge-lora", str(adapter)]) == 1
    err = capfd.readouterr().err
    assert "Somebody/Nowhere, which the adapter in" in err and "is not on this machine; --base NAME|DIR" in err
    path.write_text(path.read_text().replace('"Somebody/Nowhere"', "null"))
    assert main(["merge-lora", str(adapter)]) == 2
    assert "does not say which model it is for" in capfd.readouterr().err
    assert main(["merge-lora"]) == 2
    assert "which adapter?" in capfd.readouterr().err
    assert main(["merge-lora", str(tmp_path / "none")]) == 1
    assert "no such adapter folder" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_merge_that_is_compared_sees_what_an_adapter_of_the_tower_does(
    dtype: str | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One engine answers for base and adapter: the features of one must not answer for the other."""
    found = merging.merge(tiny_checkpoint, ADAPTERS / "visual", tmp_path / "out", dtype=dtype)
    assert found is not None and found.moved > 1e-3
