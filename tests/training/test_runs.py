"""A run laid out, before anything is trained: what it is refused for, what it needs, and whether it is the same run."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import paddle
import pytest

from qvl.errors import CheckpointError, DeviceError, UsageError
from qvl.model.device import Placement
from qvl.profile import Profile
from qvl.training import description, finetune
from qvl.training.checkpoints import STATE, check_writable, write_checkpoint
from qvl.training.description import check_alike, difference, write_description
from qvl.training.finetune import room_needed
from qvl.training.parts import Arrangement
from qvl.training.run import Request, Run, estimate_run, lay_out
from tests.training.test_examples import damaged_picture


class Silent:
    """An observer that says nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def laid_out(data: Path, model: Path, out: Path, **changes: Any) -> Run:
    options = {"method": "lora", "batch_size": 4, "workers": 0, **changes.pop("training", {})}
    request = Request(data, out, **changes.pop("request", {}))
    profile = Profile(command="finetune", model=str(model), device="cpu")
    return lay_out(profile.revised({**changes, "training": options}, "test"), request, Silent())


def described(run: Run) -> Any:
    """As `run.json` has it."""
    return json.loads(json.dumps(description.description(run)))


def test_float16_is_refused_for_training(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training is in bfloat16 or float32, not in float16"):
        laid_out(data / "data.json", tiny_checkpoint, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_gpu_without_bfloat16_trains_in_float32_and_not_in_float16(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr("qvl.training.run.choose", lambda *_: Placement("gpu:0", "float32", "composed"))
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda _device: False)
    with pytest.raises(DeviceError, match="gpu:0 has no bfloat16; train with --set dtype=float32"):
        laid_out(data / "data.json", tiny_checkpoint, tmp_path / "out", dtype=dtype)


def test_a_run_is_not_resumed_with_other_samples_of_the_same_data(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    records = json.loads((data / "data.json").read_text())
    records[2]["images"] = [str(tmp_path / "late.png")]
    (data / "late.json").write_text(json.dumps(records))
    skipping = {"on_bad_sample": "skip", "max_steps": 2}

    def lay() -> Run:
        return laid_out(data / "late.json", tiny_checkpoint, tmp_path / "out", training=skipping)

    without = lay()
    before = described(without)
    assert len(without.prepared.indices) == 7 and difference(before, lay()) is None
    (tmp_path / "late.png").write_bytes((data / "2.png").read_bytes())
    having = lay()
    assert difference(before, having) == "used_samples: 7 before, 8 now"
    without.prepared.tokens[3] += 1
    assert difference(before, without) == "used_samples: 7 before, 7 now, but others or of other lengths"
    del before["used_samples"]  # as an earlier qvl wrote it
    assert difference(before, having) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"eval_steps": 50}}, "training.eval_steps: 7 before, 50 now"),
        ({"training": {"lora": {"rank": 4}}}, "training.lora.rank: 8 before, 4 now"),
        (
            {"training": {"max_steps": 3}},
            "training.max_steps: 2 before, 3 now",
        ),  # not the updates, which follow from it
        ({"max_pixels": 50176}, "max_pixels: 100352 before, 50176 now"),
        ({"system": "Be brief.\n" * 20}, "system: null before, Be brief. Be brief. "),
        ({"training": {"save_steps": 1, "workers": 1}}, None),
    ],
)
def test_what_is_not_as_it_was_is_named_with_both_values(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str | None
) -> None:
    recipe = {"max_pixels": 100352}
    training = {"eval_steps": 7, "max_steps": 2, "lora": {"rank": 8}}

    def lay(**changes: Any) -> Run:
        changed = {**training, **changes.pop("training", {})}
        return laid_out(
            data / "data.json", tiny_checkpoint, tmp_path / "out", **{**recipe, **changes}, training=changed
        )

    found = difference(described(lay()), lay(**changes))
    assert found is None if words is None else (found or "").startswith(words)
    assert len(found or "") < 150


def test_other_data_is_named_with_both_fingerprints(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    runs = [laid_out(data / name, tiny_checkpoint, tmp_path / "out") for name in ("data.json", "turned.json")]
    before, now = (described(run)["data_fingerprint"][:12] for run in runs)
    assert difference(described(runs[0]), runs[1]) == f"data_fingerprint: {before} before, {now} now"


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """A data set with a picture that is damaged where its header does not tell."""
    records = json.loads((data / "data.json").read_text())
    damaged_picture(tmp_path)
    records[2]["images"] = [str(tmp_path / "bad.png")]
    (data / "damaged.json").write_text(json.dumps(records))
    return data / "damaged.json"


SKIPPING = {"on_bad_sample": "skip", "max_steps": 2}


def test_a_run_that_read_every_pixel_does_so_when_it_is_resumed(
    damaged: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def lay(**request: bool) -> Run:
        return laid_out(damaged, tiny_checkpoint, out, request=request, training=SKIPPING)

    first = lay(check_data=True)
    write_description(first)
    assert len(lay(resume=True).prepared.indices) == 8  # with no checkpoint it begins anew, as it is told to
    write_checkpoint(out, 1, lambda folder: (folder / STATE).touch())
    again = lay(resume=True)
    assert len(again.prepared.indices) == 7 and again.request.check_data
    assert difference(described(first), again) is None
    assert len(lay().prepared.indices) == 8


def test_a_run_that_did_not_read_every_pixel_is_not_resumed_as_one_that_does(
    damaged: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first, then = (
        laid_out(damaged, tiny_checkpoint, tmp_path / "out", request={"check_data": check}, training=SKIPPING)
        for check in (False, True)
    )
    found = difference(described(first), then)
    assert found is not None and found.startswith("used_samples: 8 before, 7 now, since --check-data, which was not")


def test_processes_that_would_use_other_samples_are_refused(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = laid_out(data / "data.json", tiny_checkpoint, tmp_path / "out")
    rest = [0.0, 0.0, 0.0]  # what the other processes say

    def together(numbers: list[float]) -> list[float]:
        return [own + others for own, others in zip(numbers, rest, strict=True)]

    monkeypatch.setattr(description, "together", together)
    run.arrangement = Arrangement(1, 3)
    own = float(int(description.used_samples(run.prepared)[:12], 16))
    rest = [own, 0.0, own]
    check_alike(run)
    run.prepared.tokens[3] += 1
    with pytest.raises(UsageError, match="process 1 would use other samples than process 0"):
        check_alike(run)


def test_a_resumed_run_needs_no_room_for_the_checkpoints_that_it_has(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run = laid_out(data / "data.json", tiny_checkpoint, out, training={"save_total_limit": 3})
    _, learning, total = estimate_run(run)
    result, checkpoint = 4 * learning, 12 * learning  # factors; and the two moments of each
    rooms = []
    for step in range(1, 6):
        rooms.append(room_needed(run, learning, total))
        write_checkpoint(out, step, lambda folder: (folder / STATE).touch())
    assert rooms == [4 * checkpoint, 3 * checkpoint, 2 * checkpoint, checkpoint + result, checkpoint + result]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(10**12, 0, rooms[-1]))
    check_writable(out, rooms[-1])
    with pytest.raises(CheckpointError, match="are free on its disk, what this run has yet to write takes"):
        check_writable(out, rooms[0])


def test_what_a_killed_run_left_behind_is_gone_before_room_is_looked_for(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run = laid_out(data / "data.json", tiny_checkpoint, out)
    (out / ".checkpoint-being-written").mkdir()

    def look(folder: Path, needed: int) -> None:
        assert needed > 0 and [path.name for path in folder.iterdir()] == [".run.lock"]
        raise CheckpointError("no room")

    monkeypatch.setattr(finetune, "check_writable", look)
    with pytest.raises(CheckpointError, match="no room"):
        finetune.train(run, Silent())
