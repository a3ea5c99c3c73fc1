"""Boxes: read from marks, scaled, drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image as PILImage

from qvl import grounding
from qvl.grounding import Box, draw_boxes, parse_boxes


def marked(label: str, *inside: str) -> str:
    boxes = "".join(f"<|box_start|>{text}<|box_end|>" for text in inside)
    return f"<|object_ref_start|>{label}<|object_ref_end|>{boxes}"


def test_a_label_has_all_the_boxes_that_follow_it() -> None:
    text = marked("cat", "(1,2),(30,40)", "(5,6),(70,80)") + " and " + marked("the dog", "(0,0),(999,999)")
    assert parse_boxes(text) == [
        Box("cat", ((1, 2), (30, 40))),
        Box("cat", ((5, 6), (70, 80))),
        Box("the dog", ((0, 0), (999, 999))),
    ]


def test_a_label_ends_with_the_words_after_its_boxes() -> None:
    text = marked("cat") + " is at <|box_start|>(1,2),(3,4)<|box_end|>, <|box_start|>(5,6),(7,8)<|box_end|>"
    text += " and something at <|box_start|>(9,9),(10,10)<|box_end|>"
    assert [box.label for box in parse_boxes(text)] == ["cat", "cat", None]


def test_boxes_without_labels_and_corners_in_any_order() -> None:
    assert parse_boxes("<|box_start|>(30, 4),(1,20)<|box_end|>") == [Box(None, ((1, 4), (30, 20)))]


def test_quads_keep_their_four_points() -> None:
    text = "<|object_ref_start|>sign<|object_ref_end|><|quad_start|>(1,2),(9,3),(8,7),(2,8)<|quad_end|>"
    (box,) = parse_boxes(text)
    assert box == Box("sign", ((1, 2), (9, 3), (8, 7), (2, 8)))
    assert box.bounds == (1, 2, 9, 8)


@pytest.mark.parametrize(
    "text",
    [
        "no marks (1,2),(3,4)",
        "<|box_start|><|box_end|>",
        "<|box_start|>(1,2)<|box_end|>",
        "<|box_start|>(1,2),(3,4),(5,6)<|box_end|>",
        "<|box_start|>(a,2),(3,4)<|box_end|>",
        "<|box_start|>(-1,2),(3,4)<|box_end|>",
        "<|box_start|>(1,2),(3,4)",
        "<|quad_start|>(1,2),(3,4)<|quad_end|>",
    ],
)
def test_malformed_boxes_are_left_out(text: str) -> None:
    assert parse_boxes(text) == []
    assert parse_boxes(text + marked("cat", "(1,2),(3,4)")) == [Box("cat", ((1, 2), (3, 4)))]


def test_pixels_are_thousandths_of_the_picture_and_stay_inside() -> None:
    box = Box("a", ((0, 500), (999, 1000))).to_pixels((480, 640))
    assert box.points == ((0, 240), (639, 480))
    (beyond,) = parse_boxes("<|box_start|>(0,0),(99999999999999999999,5000)<|box_end|>")
    assert beyond.to_pixels((480, 640)).points == ((0, 0), (640, 480))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_drawing_marks_a_copy(mode: str) -> None:
    picture = PILImage.new("RGB", (320, 240), "white").convert(mode)
    before = picture.tobytes()
    drawn = draw_boxes(picture, [Box("cat", ((40, 60), (200, 180))), Box(None, ((0, 0), (320, 240)))])
    assert (drawn.mode, drawn.size) == ("RGB", (320, 240))
    assert picture.tobytes() == before
    pixels = np.asarray(drawn)
    assert (pixels[120, 36:44] != 255).any()  # the left edge
    assert (pixels[120, 100:150] == 255).all()  # the inside is left alone


@pytest.mark.parametrize("background", ["black", "white", "#d55e00"])
def test_lines_show_on_any_background(background: str) -> None:
    picture = PILImage.new("RGB", (200, 200), background)
    edge = np.asarray(draw_boxes(picture, [Box("x", ((50, 50), (150, 150)))]))[100, 44:58].astype(int)
    assert np.ptp(edge.mean(axis=1)) > 100


def test_tiny_pictures_and_odd_boxes_are_drawn_without_an_error() -> None:
    boxes = [
        Box("a label that is far too long", ((0, 0), (0, 0))),
        Box("标签", ((1, 1), (1, 5))),
        Box("", ((0, 0), (2, 2))),
    ]
    assert draw_boxes(PILImage.new("RGB", (3, 2)), boxes).size == (3, 2)


def test_equal_labels_share_a_colour_and_others_differ() -> None:
    picture = PILImage.new("RGB", (300, 100), "white")
    boxes = [Box(label, ((x, 20), (x + 60, 80))) for label, x in (("a", 10), ("b", 110), ("a", 210))]
    pixels = np.asarray(draw_boxes(picture, boxes))
    first, second, third = (tuple(pixels[50, x]) for x in (10, 110, 210))
    assert first == third != second


def test_a_label_is_written_in_a_font_that_has_its_letters_else_it_is_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = PILImage.new("RGB", (300, 100), "white")

    def drawn(*labels: str) -> bytes:
        return draw_boxes(picture, [Box(label, ((10, 40), (200, 90))) for label in labels]).tobytes()

    monkeypatch.setattr(grounding, "_FONTS", ("no such font.ttf",))
    assert drawn("cat", "猫") == drawn("cat", "2") != drawn("cat", "cat")
    has_greek = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(grounding, "_FONTS", ("no such font.ttf", str(has_greek)))
    assert len({drawn("Ω"), drawn("Ψ"), drawn("1")}) == 3
    assert drawn("猫") == drawn("1")
