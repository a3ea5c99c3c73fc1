"""What the demo model learns from: the same each time, true to the pictures, and judged as a reader would."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.generator.__main__ import record
from examples.generator.clips import clip
from examples.generator.curve import means
from examples.generator.drawing import Box
from examples.generator.evaluate import SPLIT, boxes_right, iou, is_right
from examples.generator.samples import FEW, TRAIN, sample
from examples.generator.scenes import COLOURS, Scene, outdoor_scene, shapes_scene
from examples.generator.start import DEMO, STREAM, attention_biases, attention_weights, learn_merges, word_rows
from examples.generator.tower import (
    COLOUR_NAMES,
    GROUPS,
    KINDS,
    THINGS,
    Piece,
    batch,
    labels,
    shares,
    tokens_of_words,
    words_for,
)
from examples.generator.turns import Turn
from examples.generator.words import text_picture
from qvl.hub.small_vocabulary import write_tokenizer
from qvl.processing.image import ImageOptions
from qvl.processing.tokenizer import Tokenizer
from qvl.processing.video import VideoOptions

OPTIONS = ImageOptions(min_pixels=19600, max_pixels=32928)
CLIPS = VideoOptions(max_frames=8, min_pixels=12544, max_pixels=15680, total_pixels=125440)


@pytest.mark.parametrize("split", [FEW, TRAIN, SPLIT])
def test_a_sample_is_known_by_its_split_and_number(split: str) -> None:
    for number in range(12):
        first, again = sample(split, number), sample(split, number)
        assert first.turns == again.turns and len(first.turns) in (1, 2, 3)
        assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
        clips = [] if first.clip is None else ["clip.mp4"]
        said = record(first, ["a.png"] * len(first.images), clips)
        marks = said["messages"][0]["content"].count("<image>"), said["messages"][0]["content"].count("<video>")
        assert marks == (len(first.images), len(clips))


def test_splits_share_no_sample() -> None:
    said = {split: [sample(split, number).turns for number in range(20)] for split in (FEW, TRAIN, SPLIT)}
    assert not [turns for turns in said[SPLIT] if turns in said[TRAIN] + said[FEW]]


def test_what_is_beyond_comes_anywhere_in_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Met last alone, such a question is answered as if it were another where it comes first."""
    monkeypatch.setattr(Scene, "draw", lambda *_: Image.new("RGB", (1, 1)))
    places: Counter[int] = Counter()
    for number in range(800):
        made = sample(TRAIN, number)
        if made.images:
            places.update(index for index, turn in enumerate(made.turns) if turn.task == "beyond")
    assert all(places[place] >= 5 for place in range(3))


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((100, 200, 300, 400), 1.0),
        ((200, 200, 400, 400), 1 / 3),
        ((500, 500, 600, 600), 0.0),
        ((300, 400, 100, 200), 0.0),
    ],
)
def test_boxes_are_measured_by_what_they_share(bounds: tuple[int, int, int, int], expected: float) -> None:
    assert iou(bounds, Box(20, 80, 60, 160), (200, 400)) == pytest.approx(expected)


def test_an_answer_is_right_by_what_it_says() -> None:
    scene = Turn("detail", "", "The picture shows a red circle at the top and a small blue star on the left.")
    assert is_right(scene, "The picture shows a small blue star at the bottom and a red circle in the middle.")
    assert not is_right(scene, "The picture shows a red circle at the top and a small green star on the left.")
    assert not is_right(scene, "The picture shows a red circle at the top.")
    assert is_right(Turn("count", "", "There are 3 stars."), "There are 3 stars.\n")
    assert not is_right(Turn("count", "", "There are 3 stars."), "There are 2 stars.")
    marks = "<|object_ref_start|>the {}<|object_ref_end|><|box_start|>({},200),(300,400)<|box_end|>"
    box = Turn("box", "", marks.format("star", 100), (Box(20, 80, 60, 160),))
    size = (200, 400)
    assert is_right(box, marks.format("star", 120), size)
    assert not is_right(box, marks.format("star", 200), size)
    assert not is_right(box, marks.format("circle", 100), size)
    assert not is_right(box, "There is no star.", size)
    two = Turn("all boxes", "", marks.format("star", 100) * 2, (Box(20, 80, 60, 160), Box(100, 80, 140, 160)))
    assert boxes_right(two, marks.format("star", 100) * 2, size) == 1, "a box is of one thing"
    assert boxes_right(two, marks.format("star", 100) + marks.format("circle", 500), size) == 1
    assert boxes_right(box, "There is no star.", size) == 0


def test_a_text_tells_where_its_characters_are() -> None:
    for number in range(20):
        made = text_picture(np.random.default_rng(number))
        assert len(made.boxes) == len(made.text)
        ends = [edge for box in made.boxes for edge in (box.left, box.right)]
        assert ends == sorted(ends) and ends[-1] <= 1.03 * made.image.width
        pixels = np.asarray(made.image, np.float32)
        for box, character in zip(made.boxes, made.text, strict=True):
            # Whatever the colours are: there is ink in the middle rows of a character, unless it is an I beside them.
            part = pixels[round(box.top) : round(box.bottom), max(0, round(box.left)) : round(box.right)]
            # By one colour at least: yellow is as bright as the grounds.
            assert np.ptp(part, axis=(0, 1)).max() > 60, character


def test_patches_are_told_what_lies_at_their_centres() -> None:
    """Four rows of six patches, two by two; a square on the four in the middle of the left half."""
    piece = Piece("square", "blue", Box(14, 14, 42, 42))
    kinds, colours, edges, has_edges, centres = labels([piece], (84, 56), (1, 4, 6))
    inside = {(row, column) for row in (1, 2) for column in (1, 2)}
    order = [(2 * r + i, 2 * c + j) for r in range(2) for c in range(3) for i in range(2) for j in range(2)]
    wanted = [place in inside for place in order]
    assert [KINDS[kind] == "square" for kind in kinds] == wanted
    assert [COLOUR_NAMES[colour] == "blue" for colour in colours] == wanted
    assert has_edges[:, 0].tolist() == [float(is_in) for is_in in wanted]
    first = order.index((1, 1))
    np.testing.assert_allclose(edges[first] * [84, 56, 84, 56], [14, 14, 42, 42], atol=1e-5)
    np.testing.assert_allclose(centres[first] * [84, 56], [21, 21], atol=1e-5)
    np.testing.assert_allclose(shares([piece], (84, 56), (1, 4, 6)), [[0.25, 0.25, 0, 0.25, 0.25, 0]])


def test_words_for_a_piece_are_those_of_its_place() -> None:
    piece = Piece("star", "orange", Box(70, 0, 90, 20), "small")
    said = [group[n - 1] if n else None for group, n in zip(GROUPS, words_for(piece, (100, 100)), strict=True)]
    assert said == ["star", "orange", "small", "top", "right"]
    middle = Piece("A", "red", Box(40, 40, 60, 60))
    said = [group[n - 1] if n else None for group, n in zip(GROUPS, words_for(middle, (100, 100)), strict=True)]
    assert said == ["A", "red", None, None, None]


def test_a_name_finds_its_thing_in_the_picture_before_it_finds_itself() -> None:
    """What an untrained model does by the weights it begins with: layer 0 copies a name, layer 1 looks for it."""
    rng = np.random.default_rng(0)
    width, dim = DEMO.hidden_size, DEMO.head_dim
    names, places = (rng.normal(0, STREAM, (count, width)) for count in (17, 6))
    told = np.concatenate([names, places])
    picture = rng.normal(0, STREAM, width)
    picture -= told.T @ np.linalg.lstsq(told.T, picture, rcond=None)[0]
    made = attention_biases(DEMO) | attention_weights(DEMO, 0, picture, names, places)

    def normal(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True))

    value, out = (made[f"model.layers.0.self_attn.{kind}_proj.weight"] for kind in ("v", "o"))
    heard = normal(names) @ value[:dim].T @ out[:, :dim].T
    other = rng.normal(0, STREAM, width)  # the word that is read when the name has been
    query = normal(other + heard) @ made["model.layers.1.self_attn.q_proj.weight"][:dim].T
    query += made["model.layers.1.self_attn.q_proj.bias"][:dim]
    key = made["model.layers.1.self_attn.k_proj.weight"][:dim]
    things, words = (query @ (normal(tokens) @ key.T).T / np.sqrt(dim) for tokens in (names + picture, names))
    assert (things.argmax(axis=1) == np.arange(17)).all()
    assert (things.diagonal() - things.mean(axis=1) > 2).all()
    assert (things.diagonal() > words.max(axis=1) + 2).all()


def test_the_words_that_a_tower_tells_are_a_token_each(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, DEMO, learn_merges(400))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert len(set(tokens_of_words(tokenizer))) == sum(map(len, GROUPS))
    rows, picture, names, places = word_rows(DEMO, tokenizer, seed=0)
    assert rows.shape == (1024, 192) and len(names) == len(THINGS) + len(COLOURS) and len(places) == 6
    np.testing.assert_allclose(np.concatenate([names, places]) @ picture, 0, atol=1e-9)
    write_tokenizer(tmp_path, DEMO, ())
    with pytest.raises(ValueError, match="more than a token each"):
        tokens_of_words(Tokenizer.from_folder(tmp_path))


def test_an_answer_names_a_thing_before_it_tells_of_it() -> None:
    told = {
        "count": r"Looking for .+, I see .+: (\d|no) .+\.",
        "is there": r"Looking for an? .+: (yes, there is|no, there is none)\.",
    }
    seen = dict.fromkeys(told, 0)
    for number in range(300):
        for turn in sample(SPLIT, number).turns:
            if turn.task in told:
                assert re.fullmatch(told[turn.task], turn.answer), turn.answer
                seen[turn.task] += 1
    assert min(seen.values()) > 20


def test_what_is_counted_aloud_is_what_is_said_to_be_there() -> None:
    seen = []
    for number in range(200):
        for turn in sample(TRAIN, number).turns:
            if turn.task == "count":
                aloud, _, said = turn.answer.rpartition(": ")
                wanted = aloud.removeprefix("Looking for ").partition(",")[0]
                assert said.rstrip(".").split(maxsplit=1)[1] in (wanted, wanted.removesuffix("s"), wanted[:-2])
                numbers = [int(count) for count in re.findall(r"\((\d)\)", aloud)]
                assert numbers == list(range(1, len(numbers) + 1))
                for name, number in re.findall(r"an? ([\w ]+) \((\w+)\)", aloud):
                    plurals = {
                        "shapes",
                        *(f"{one}{'es' * (one[-1] == 's') or 's'}" for one in (name, name.split()[-1])),
                    }
                    assert (wanted in plurals) == (number != "no"), turn.answer
                assert said.split()[0] == (str(len(numbers)) if numbers else "no")
                assert said.endswith("s.") != (len(numbers) == 1 and not said.endswith("cross.")), turn.answer
                seen.append(len(numbers))
    assert {0, 1, 2, 3} <= set(seen)


def test_it_is_clear_which_thing_outdoors_comes_first() -> None:
    counts = set()
    for number in range(200):
        things = outdoor_scene(np.random.default_rng(number)).things
        counts.add(len(things))
        for one, other in pairwise(things):
            if (one.kind in ("sun", "cloud")) == (other.kind in ("sun", "cloud")):
                assert other.box.centre[0] - one.box.centre[0] > 0.25 * min(one.box.width, other.box.width)
            else:
                assert one.kind in ("sun", "cloud"), "the sky is told first"
    assert counts == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("split", [TRAIN, SPLIT])
def test_a_difference_follows_from_what_is_in_which_picture(split: str) -> None:
    seen = set()
    for number in range(400):
        for turn in sample(split, number).turns:
            if turn.task == "compare" and turn.answer.startswith("I see "):
                told = r"an? (\w+ \w+) (in both|in the first|in the second|that is now an? (\w+ \w+))"
                found = re.findall(told, turn.answer)
                assert len(found) == turn.answer.count(",") + turn.answer.count(" and ") + 1
                gone = [name for name, what, _ in found if what == "in the first"]
                new = [name for name, what, _ in found if what == "in the second"]
                became = [(name, instead) for name, _, instead in found if instead]
                conclusion = turn.answer.partition(": ")[2]
                if match := re.fullmatch(r"the (\w+ \w+) has become (?:an? )?(\w+)\.", conclusion):
                    ((name, instead),) = became
                    assert name == match[1] and [match[2]] == sorted({*instead.split()} - {*name.split()}), turn.answer
                    assert not gone + new, turn.answer
                    gone = [name]
                else:
                    wanted = {"gone": (1, 0), "new": (0, 1), "same": (0, 0)}[conclusion.rstrip(".").split()[-1]]
                    assert (len(gone), len(new), len(became)) == (*wanted, 0), turn.answer
                    assert all(name in conclusion for name in gone + new), turn.answer
                # What changes is told from the rest by its name.
                assert sum(name in gone + new for name, _, _ in found) == len(gone + new), turn.answer
                seen.add(conclusion.rstrip(".").split()[-1] if match is None else "become")
    assert seen == {"gone", "new", "same", "become"}


def test_of_a_clip_each_thing_is_said_to_do_what_it_does() -> None:
    seen = set()
    for number in range(200):
        made = clip(np.random.default_rng(number))
        for turn in made.turns:
            first, last = made.scenes[0], made.scenes[-1]
            if match := re.fullmatch(r"The (\w+ \w+) .+, so (yes|no)\.", turn.answer):
                assert (first.named(match[1]) != last.named(match[1])) == (match[2] == "yes"), turn.answer
                seen.add(match[2])
            if re.match("what (happens|changes|moves|is moving)", turn.question, re.IGNORECASE):
                told = re.findall(r"an? (\w+ \w+) (\w+)", turn.answer, re.IGNORECASE)
                still = [name for name, does in told if does == "stands"]
                assert len(told) == len(still) + 1
                assert {one.name for one in first.things if one in last.things} == set(still), turn.answer
                seen.update(does for _, does in told)
    assert seen == {"yes", "no", "stands", "moves", "turns", "appears", "vanishes", "grows", "shrinks"}


def test_what_comes_first_from_left_to_right_is_clear() -> None:
    for number in range(200):
        things = shapes_scene(np.random.default_rng(number)).things
        centres = [thing.box.centre[0] for thing in things]
        assert all(right - left > 5 for left, right in pairwise(centres))


def test_things_may_be_drawn_alike() -> None:
    shared = {True: 0, False: 0}  # by whether they are to be, pairs that share a colour or a kind but not both
    for alike in shared:
        for number in range(200):
            made = clip(np.random.default_rng(number), alike=float(alike)).scenes[0].things
            shown = shapes_scene(np.random.default_rng(number), alike=float(alike)).things
            for things in (made, shown):
                names = [{thing.kind, thing.colour} for thing in things]
                shared[alike] += sum(len(one & other) == 1 for one in names for other in names)
    assert shared[True] > 2 * shared[False]


def test_batches_of_the_tower_fit_together() -> None:
    made = batch((OPTIONS, CLIPS), 3, size=12)
    patches = sum(rows * columns for _, rows, columns in made.grids)
    assert made.patches.shape == (patches, 1176) and made.kinds.shape == made.colours.shape == (patches,)
    assert made.shares.shape == (len(made.words), patches // 4) and made.words.shape == (len(made.boxes), len(GROUPS))
    np.testing.assert_allclose(made.shares.sum(axis=1), 1, rtol=1e-5)
    assert set(made.kinds) - {0} <= set(made.words[:, 0])
    np.testing.assert_array_equal(batch((OPTIONS, CLIPS), 3, size=12).patches, made.patches)


def test_a_curve_takes_a_repeated_update_once(tmp_path: Path) -> None:
    steps = [(1, 4.0, 10), (2, 9.0, 10), (2, 2.0, 30), (3, 1.0, 10)]
    lines = [json.dumps({"step": step, "loss": loss, "supervised_tokens": n}) for step, loss, n in steps]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert means(tmp_path, over=2) == [(2, 2.5), (3, 1.0)]
