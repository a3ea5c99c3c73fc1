"""Files and mixes of files: what is in them, in which order, and what is said of broken ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qvl.errors import QvlError, UsageError
from qvl.messages import Image, Text
from qvl.training.dataset import DataSet, load_dataset
from qvl.training.formats import DataError


def record(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}], **more}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def questions(data: DataSet) -> list[str]:
    return [part.text for i in range(len(data)) for part in data[i].messages[0].parts if isinstance(part, Text)]


def refusal(path: Path, kind: type[QvlError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path.parent))
    return str(caught.value).removeprefix(f"{path.parent}/")


def mix(folder: Path, sizes: dict[str, int], **entries: dict[str, Any]) -> Path:
    """A meta file over sets of these sizes; sample i of set x asks "xi"."""
    for name, size in sizes.items():
        write(folder / f"{name}.json", [record(f"{name}{i}") for i in range(size)])
    return write(folder / "meta.json", {n: {"annotation": f"{n}.json", **entries.get(n, {})} for n in sizes})


def test_a_json_list(tmp_path: Path) -> None:
    path = write(tmp_path / "some.json", [record("a<image>", images=["x.png"]), record("b")])
    data = load_dataset(path)
    assert (len(data), data.names, data.counts) == (2, ("some",), (2,))
    assert (data[1].file, data[1].index, data[1].where) == (str(path), 1, f"{path}: sample 1")
    assert data[0].messages[0].parts[1] == Image(str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.json"])
def test_json_lines_are_told_by_suffix_or_content(name: str, tmp_path: Path) -> None:
    lines = ["\ufeff" + json.dumps(record("ä")), "", json.dumps(record("b")), "  ", json.dumps(record("c"))]
    data = load_dataset(write(tmp_path / name, "\r\n".join(lines)))
    assert questions(data) == ["ä", "b", "c"]
    assert data.where(1) == f"{tmp_path / name}: sample 1 (line 3)"


def test_one_line_is_a_data_set_too(tmp_path: Path) -> None:
    assert questions(load_dataset(write(tmp_path / "one.jsonl", json.dumps(record("a"))))) == ["a"]


def test_a_broken_line_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", json.dumps(record("a")) + '\n\n{"messages": [}\n')
    data = load_dataset(path)
    with pytest.raises(DataError) as caught:
        data[1]
    assert str(caught.value) == f"{path}: sample 1 (line 3): not valid JSON (column 15: Expecting value)"


def test_a_number_of_too_many_digits_is_a_broken_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", json.dumps(record("a")) + '\n{"id": ' + "1" * 5000 + "}\n")
    data = load_dataset(path)
    with pytest.raises(DataError) as caught:
        data[1]
    assert str(caught.value).startswith(f"{path}: sample 1 (line 2): not valid JSON (Exceeds the limit (4300 digits)")
    assert refusal(write(tmp_path / "x.json", f"[{'1' * 5000}]")).startswith("x.json: not valid JSON (Exceeds")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json: is empty"),
        (" \n\n", "x.json: is empty"),
        ("[]", "x.json: has no samples"),
        ("{}", "x.json: is an empty object"),
        ('"text"', "x.json: a list of samples was expected, not text"),
        ('[{"messages":\n [}]', "x.json: not valid JSON (line 2, column 3: Expecting value)"),
        ('[\n{"a": 1},', "x.json: not valid JSON (line 2, column 10: "),
        ('{"messages": [], "images": []}', "x.json: neither a list of samples (messages with images or videos"),
    ],
)
def test_files_that_are_no_data_sets(text: str, message: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "x.json", text)).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.json", UsageError) == "no.json: no such file"
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    assert refusal(tmp_path / "x.json") == "x.json: not UTF-8 (byte 2)"
    write(tmp_path / "y.json", [record("a")]).unlink()
    data = load_dataset(write(tmp_path / "z.jsonl", json.dumps(record("a"))))
    (tmp_path / "z.jsonl").unlink()
    with pytest.raises(DataError, match=r"sample 0 \(line 1\): the file can no longer be read"):
        data[0]


def test_a_mix_with_repeats_and_fractions(tmp_path: Path) -> None:
    entries = {
        "a": {"repeat_time": 1},
        "b": {"repeat_time": 0.5},
        "c": {"repeat_time": 2.5},
        "d": {"repeat_time": 0.01},
    }
    meta = mix(tmp_path, {"a": 3, "b": 10, "c": 4, "d": 5}, **entries)
    data = load_dataset(meta)
    assert (data.names, data.counts, len(data)) == (("a", "b", "c", "d"), (3, 5, 10, 1), 19)
    asked = questions(data)
    assert asked[:3] == ["a0", "a1", "a2"]
    assert len(set(asked[3:8])) == 5
    assert asked[8:16] == ["c0", "c1", "c2", "c3"] * 2
    assert sorted(Counter(asked[8:18]).values()) == [2, 2, 3, 3]
    assert questions(load_dataset(meta)) == asked
    other = questions(load_dataset(meta, seed=1))
    assert len(other) == len(asked)
    assert other != asked


def test_a_set_of_a_mix_does_not_change_with_the_others(tmp_path: Path) -> None:
    half = {"b": {"repeat_time": 0.5}}
    alone = questions(load_dataset(mix(tmp_path, {"b": 20}, **half)))
    assert questions(load_dataset(mix(tmp_path, {"a": 3, "b": 20}, **half)))[3:] == alone


def test_weights_are_shares_beside_the_largest_set(tmp_path: Path) -> None:
    weights = {"a": {"weight": 2}, "b": {"weight": 1}, "c": {"weight": 3, "repeat_time": 1}}
    data = load_dataset(mix(tmp_path, {"a": 20, "b": 4, "c": 8}, **weights))
    assert data.counts == (20, 10, 30)
    assert sorted(Counter(questions(data)[20:30]).values()) == [2, 2, 3, 3]


def test_paths_of_a_mix(tmp_path: Path) -> None:
    picture = record("<image>", images=["x.png"])
    write(tmp_path / "deep" / "a.json", [picture])
    write(tmp_path / "deep" / "b.jsonl", json.dumps(picture))
    entries = {"a": {"annotation": "deep/a.json"}, "b": {"annotation": "deep/b.jsonl", "root": "pictures"}}
    data = load_dataset(write(tmp_path / "meta.json", json.dumps(entries, indent=1)))
    assert data[0].messages[0].parts == (Image(str(tmp_path / "deep" / "x.png")),)
    assert data[1].messages[0].parts == (Image(str(tmp_path / "pictures" / "x.png")),)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"repeat_times": 2}, "meta.json: a: unknown key 'repeat_times', did you mean 'repeat_time'?"),
        ({"repeat_time": 0}, "meta.json: a: repeat_time is 0; expected a number above 0"),
        ({"repeat_time": True}, "meta.json: a: repeat_time is True; expected a number above 0"),
        ({"weight": "1"}, "meta.json: a: weight is '1'; expected a number above 0"),
        ({"weight": 1, "repeat_time": 2}, "meta.json: a: repeat_time and weight exclude each other"),
        ({"weight": 1}, "meta.json: b: has no weight, and others have; give all sets one, or none"),
        ({"root": 3}, "meta.json: a: root has to be a path"),
        ({"data_augment": True}, "meta.json: a: data_augment is not supported"),
        ({"annotation": "no.json"}, "no.json: no such file"),
    ],
)
def test_wrong_meta_files(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(mix(tmp_path, {"a": 2, "b": 2}, a=entry), UsageError) == message


def test_the_fingerprint_is_of_the_samples_and_the_mix(tmp_path: Path) -> None:
    def fingerprint(folder: str, repeat: float = 1, seed: int = 0, size: int = 9) -> str:
        return load_dataset(mix(tmp_path / folder, {"a": size}, a={"repeat_time": repeat}), seed=seed).fingerprint()

    first = fingerprint("one")
    assert len(first) == 64
    assert fingerprint("two") == first
    assert fingerprint("one", seed=1) == first  # nothing is chosen by it
    others = {
        fingerprint("one", 2),
        fingerprint("one", 0.5),
        fingerprint("one", 0.5, seed=1),
        fingerprint("one", size=8),
    }
    assert len(others | {first}) == 5
