"""Going through the samples before training, and decoding them during it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from qvl.processing.processor import Processor
from qvl.training.dataset import DataSet, load_dataset
from qvl.training.examples import ExampleOptions, ExampleSource, Prepared, prepare
from qvl.training.formats import DataError
from tests.golden import MEDIA
from tests.training.data_support import processor_of
from tests.unit.media_fixtures import encoded, noise

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = ExampleOptions(max_length=4096)
SKIP = ExampleOptions(max_length=4096, on_bad_sample="skip")
FULL = ExampleOptions(max_length=4096, check="full")


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return processor_of(tiny_checkpoint)


def sample(text: str = "What?", reply: str = "A dog.", **media: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
    return {"messages": turns, **media}


def write(folder: Path, *samples: object, name: str = "set.json") -> DataSet:
    for file in MEDIA.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    (folder / name).write_text(json.dumps(samples), encoding="utf-8")
    return load_dataset(folder / name)


GOOD = sample("<image>?", images=["grey.png"])


def test_the_examples_of_the_repository(processor: Processor) -> None:
    data = load_dataset(EXAMPLES / "finetune.json")
    prepared = prepare(data, processor, FULL)
    assert len(prepared.indices) == len(data) == 8
    assert np.array_equal(prepare(data, processor, OPTIONS).tokens, prepared.tokens)
    assert prepared.tokens.max() < 1500


def test_measures_and_report(processor: Processor, tmp_path: Path) -> None:
    data = write(tmp_path, GOOD, sample(), sample("<video>?", videos=["clip.mp4"]), sample("x", images=["large.png"]))
    seen: list[tuple[int, int]] = []
    prepared = prepare(data, processor, OPTIONS, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert prepared.indices.tolist() == [0, 1, 2, 3]
    source = ExampleSource(data, processor, prepared)
    for i in range(len(source)):
        assert len(source[i].prompt) == prepared.tokens[i]
        assert source[i].supervised_tokens == prepared.supervised_tokens[i]
    tokens, supervised = prepared.tokens.sum(), prepared.supervised_tokens.sum()
    assert prepared.report.lines() == [f"set: 4 of 4 samples used; {tokens} tokens, {supervised} supervised"]


def cut_picture(folder: Path) -> None:
    data = encoded(PILImage.fromarray(noise(90, 90)), "JPEG")
    (folder / "bad.jpg").write_bytes(data[: len(data) // 2])


def damaged_picture(folder: Path) -> None:
    """Whole by its header and its end, and broken between them."""
    data = bytearray(encoded(PILImage.fromarray(noise(90, 90))))
    data[len(data) // 2] ^= 255
    (folder / "bad.png").write_bytes(bytes(data))


def no_frames(folder: Path) -> None:
    data = (MEDIA / "clip.mp4").read_bytes()
    (folder / "bad.mp4").write_bytes(data[:400])


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize("check", ["headers", "full"])
@pytest.mark.parametrize(
    ("make", "bad", "reason"),
    [
        (nothing, sample("<image>", images=["no.png"]), "{folder}/no.png: no such file"),
        (nothing, sample("<image><image>", images=["grey.png"]), "2 <image> in the text, but 1 image"),
        (nothing, {"messages": [{"role": "user", "content": "x"}]}, "no reply of the assistant"),
        (nothing, sample(reply=""), "the assistant's reply is empty"),
        (nothing, {"messages": [{"role": "robot", "content": "x"}]}, "message 0: unknown role 'robot'"),
        (nothing, {"conversations": [{"from": ["human"], "value": "x"}]}, "message 0: unknown role ['human']"),
        (cut_picture, sample("<image>", images=["bad.jpg"]), "{folder}/bad.jpg: damaged or unreadable picture"),
        (no_frames, sample("<video>", videos=["bad.mp4"]), "{folder}/bad.mp4: not a clip that can be read"),
        (nothing, sample("<video>", videos=[{"video": "clip.mp4", "nframes": 99}]), "nframes 99 is not possible"),
    ],
)
def test_a_broken_sample_stops_or_is_counted(
    make: Callable[[Path], None], bad: dict[str, Any], reason: str, check: Any, processor: Processor, tmp_path: Path
) -> None:
    make(tmp_path)
    data = write(tmp_path, GOOD, bad, sample())
    message = f"{tmp_path / 'set.json'}: sample 1: " + reason.format(folder=tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(data, processor, ExampleOptions(4096, check=check))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    prepared = prepare(data, processor, ExampleOptions(4096, on_bad_sample="skip", check=check))
    assert prepared.indices.tolist() == [0, 2]
    assert (prepared.report.total("bad"), prepared.report.total("used")) == (1, 2)
    assert prepared.report.reasons == (str(caught.value),)
    assert prepared.report.lines()[0].startswith("set: 2 of 3 samples used, 1 skipped as bad; ")


def test_damage_behind_the_header_is_seen_by_the_full_check_or_when_it_is_read(
    processor: Processor, tmp_path: Path
) -> None:
    damaged_picture(tmp_path)
    data = write(tmp_path, GOOD, sample("<image>", images=["bad.png"]))
    message = f"sample 1: {tmp_path / 'bad.png'}: damaged or unreadable picture"
    with pytest.raises(DataError, match=message):
        prepare(data, processor, FULL)
    source = ExampleSource(data, processor, prepare(data, processor, OPTIONS))
    with pytest.raises(DataError, match=message):
        source[1]


def test_a_clip_without_frames(processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        frames, fps, name = 0, 25.0, "clip.mp4"

        def close(self) -> None:
            pass

    monkeypatch.setattr("qvl.processing.video.open_clip", lambda *_, **__: Empty())
    data = write(tmp_path, sample("<video>", videos=["clip.mp4"]))
    for options in (OPTIONS, FULL):
        with pytest.raises(DataError, match=r"set\.json: sample 0: clip\.mp4: has no frames"):
            prepare(data, processor, options)


def test_a_long_sample_is_dropped_or_an_error_and_never_cut(processor: Processor, tmp_path: Path) -> None:
    data = write(tmp_path, sample(), sample("<image>", images=["large.png"]), sample("x " * 50))
    longest = int(prepare(data, processor, OPTIONS).tokens[1])
    prepared = prepare(data, processor, ExampleOptions(longest - 1))
    assert prepared.indices.tolist() == [0, 2]
    assert prepared.report.lines()[0].startswith("set: 2 of 3 samples used, 1 dropped as too long; ")
    message = f"{tmp_path / 'set.json'}: sample 1: {longest} tokens are over the max_length of {longest - 1}"
    with pytest.raises(DataError) as caught:
        prepare(data, processor, ExampleOptions(longest - 1, on_long="error"))
    assert str(caught.value) == message
    assert len(prepare(data, processor, ExampleOptions(longest, on_long="error")).indices) == 3


def test_nothing_left_is_an_error(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(write(tmp_path, sample()), processor, ExampleOptions(3))
    assert str(caught.value) == (
        "no sample is left to train on: set: 0 of 1 samples used, 1 dropped as too long; 0 tokens, 0 supervised"
    )


def many(folder: Path) -> DataSet:
    samples = [sample(f"{i} " * (i % 7)) for i in range(90)]
    samples[20] = samples[61] = sample(reply="")
    samples[33] = sample("<image>", images=["no.png"])
    write(folder, *samples, name="a.json")
    write(folder, GOOD, sample("long " * 500), name="b.json")
    meta = {"a": {"annotation": "a.json", "repeat_time": 1.5}, "b": {"annotation": "b.json", "repeat_time": 3}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return load_dataset(folder / "meta.json")


def same(one: Prepared, other: Prepared) -> bool:
    pairs = ((getattr(one, name), getattr(other, name)) for name in ("indices", "tokens", "supervised_tokens"))
    return all(np.array_equal(*pair) for pair in pairs) and one.report == other.report


def test_the_result_does_not_depend_on_the_workers(processor: Processor, tmp_path: Path) -> None:
    data, options = many(tmp_path), ExampleOptions(400, on_bad_sample="skip")
    alone = prepare(data, processor, options)
    assert [item.samples for item in alone.report.sets] == [135, 6]
    assert [item.too_long for item in alone.report.sets] == [0, 3]
    assert alone.report.total("used") + alone.report.total("bad") == 138
    for workers in (1, 3):
        assert same(prepare(data, processor, options, workers), alone)
        with pytest.raises(DataError, match=r"a\.json: sample 20: the assistant's reply is empty"):
            prepare(data, processor, ExampleOptions(400), workers)


def test_repeats_are_read_once(processor: Processor, tmp_path: Path) -> None:
    total = []
    prepared = prepare(many(tmp_path), processor, SKIP, on_progress=lambda _, count: total.append(count))
    assert total == [92] * 92
    assert len(prepared.indices) > 130


def test_the_cache_keeps_what_was_used_last(processor: Processor, tmp_path: Path) -> None:
    data = write(tmp_path, GOOD, sample("<image>!", images=["grey.png"]), sample("<image>.", images=["grey.png"]))
    prepared = prepare(data, processor, OPTIONS)
    plain = ExampleSource(data, processor, prepared)
    assert plain[0] is not plain[0]
    first = plain[0]
    size = first.prompt.visions[0].patches.nbytes + 5 * first.prompt.input_ids.nbytes
    source = ExampleSource(data, processor, prepared, cache_bytes=2 * size + 100)
    kept = [source[0], source[1]]
    assert source[0] is kept[0]
    source[2]  # in the place of 1, which was used longest ago
    assert source[0] is kept[0]
    assert source[1] is not kept[1]
    assert np.array_equal(source[1].prompt.visions[0].patches, kept[1].prompt.visions[0].patches)


def test_a_picture_that_changes_or_goes_away_meanwhile_is_named(processor: Processor, tmp_path: Path) -> None:
    data = write(tmp_path, sample(), GOOD)
    source = ExampleSource(data, processor, prepare(data, processor, OPTIONS))
    shutil.copy(MEDIA / "large.png", tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"set\.json: sample 1: has \d+ tokens, and had \d+ when the data were checked"):
        source[1]
    (tmp_path / "grey.png").unlink()
    with pytest.raises(DataError, match=r"set\.json: sample 1: .*grey\.png: no such file"):
        source[1]
