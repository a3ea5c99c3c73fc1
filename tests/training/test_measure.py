"""A measure is the length of the example, exactly, whatever the picture's format and the message's options."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from qvl.errors import MediaError, QvlError, UsageError
from qvl.messages import Image, Message, Part, Video
from qvl.processing import clip
from qvl.processing.image import ImageOptions, image_size, load_image
from qvl.processing.measure import Measure, measure
from qvl.processing.media import open_source
from qvl.processing.pillow import header_suffices, reading
from qvl.processing.processor import Processor
from qvl.processing.template import Layout
from qvl.processing.video import VideoOptions
from tests.golden import MEDIA
from tests.golden.cases import CASES, Case
from tests.parity.support import messages_of
from tests.training.data_support import processor_of
from tests.unit.media_fixtures import encoded, noise, png_header

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def processor(tiny_checkpoint: Path) -> Processor:
    return processor_of(tiny_checkpoint)


def check(processor: Processor, messages: Sequence[Message]) -> Measure:
    found = measure(processor, messages)
    example = processor.example(messages)
    assert found == Measure(len(example.prompt), example.supervised_tokens)
    assert measure(processor, messages, training=False) == Measure(len(processor.prompt(messages)), 0)
    return found


def picture(height: int, width: int, kind: str = "PNG", orientation: int | None = None, **options: Any) -> bytes:
    image = PILImage.fromarray(noise(height, width))
    if orientation is not None:
        exif = PILImage.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    return encoded(image, kind, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("template", ["chat", "none"])
def test_golden_cases(case: Case, template: Any, tiny_checkpoint: Path) -> None:
    layout = Layout(template=template, add_vision_id=case.add_vision_id)
    reply = Message.of("assistant", "It is <|box_start|>(1,2),(3,4)<|box_end|> 一只狗, <|im_end|> typed.")
    found = check(processor_of(tiny_checkpoint, layout=layout), [*messages_of(case), reply])
    assert found.supervised_tokens > 0


@pytest.mark.parametrize("reader", ["decord", "av"])
@pytest.mark.parametrize(
    "part",
    [
        Video(str(MEDIA / "clip.mp4")),
        Video((MEDIA / "clip.mp4").read_bytes(), fps=5.0, min_pixels=3136),
        Video(str(MEDIA / "clip.mp4"), nframes=4, resized_height=60, resized_width=90),
        Video(str(MEDIA / "clip.mp4"), video_start=1.0, max_pixels=9000),
        Video(str(MEDIA / "frame-*.png")),
        Video([noise(40, 60), PILImage.fromarray(noise(40, 60)), picture(40, 60)], total_pixels=20_000),
        Video(picture(40, 60)),
    ],
)
def test_clips(part: Video, reader: str, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(reader)
    monkeypatch.setenv("QVL_VIDEO_READER", reader)
    check(processor, [Message.of("user", part, "?"), Message.of("assistant", "Yes.")])


@pytest.mark.parametrize("raw_pixels", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_sizes_are_those_of_the_pixels(kind: str, orientation: int | None, raw_pixels: bool) -> None:
    data = picture(40, 100, kind, orientation)
    image = load_image(data, raw_pixels=raw_pixels)
    assert image_size(data, raw_pixels=raw_pixels) == (image.height, image.width)


def test_an_orientation_after_the_pixels_of_a_png_counts() -> None:
    whole = picture(40, 100, "PNG", 6)
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    tail = whole.index(b"IEND") - 4
    moved = whole[:start] + whole[end:tail] + whole[start:end] + whole[tail:]
    assert load_image(moved).size == (40, 100)
    assert image_size(moved) == (100, 40)
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    xmp = picture(40, 100, "PNG", pnginfo=info)
    assert image_size(xmp) == load_image(xmp).size[::-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_pictures_are_not_decoded_and_cut_ones_are(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(400, 500, kind)
    with PILImage.open(io.BytesIO(data)) as image:
        assert header_suffices(image)
    with pytest.raises(MediaError):
        image_size(data[: len(data) * 3 // 4])
    monkeypatch.setattr(PILImage.Image, "load", lambda _: pytest.fail("decoded"))
    assert image_size(data) == (400, 500)


@pytest.mark.parametrize(
    "part",
    [
        Image(np.zeros((3, 1000, 3), np.uint8)),
        Image(png_header(60000, 60000)),
        Image("no.png"),
        Image(b"this is not a picture"),
        Image(picture(40, 60), min_pixels=9000, max_pixels=4000),
        Image(picture(40, 60), resized_height=56),
        Video([picture(40, 60), picture(60, 40)]),
        Video([]),
        Video([picture(40, 60)], nframes=2),
        Video(str(MEDIA / "clip.mp4"), nframes=2, fps=1.0),
        Video(str(MEDIA / "clip.mp4"), nframes=200),
        Video(str(MEDIA / "clip.mp4"), video_start=50.0),
        Video(b"this is not a clip, whatever it is"),
    ],
)
def test_what_the_processor_refuses_is_refused_in_its_words(part: Part, processor: Processor) -> None:
    messages = [Message.of("user", part), Message.of("assistant", "x")]
    caught: list[QvlError] = []
    for read in (processor.example, lambda messages: measure(processor, messages)):
        with pytest.raises((MediaError, UsageError)) as error:
            read(messages)
        caught.append(error.value)
    assert (type(caught[0]), str(caught[0])) == (type(caught[1]), str(caught[1]))


def test_limits_of_the_options_count(tiny_checkpoint: Path) -> None:
    images, videos = ImageOptions(max_pixels=4000), VideoOptions(fps=5.0, max_pixels=110_000)
    processor = processor_of(tiny_checkpoint, image_options=images, video_options=videos)
    parts = (Image(str(MEDIA / "large.png")), Video(str(MEDIA / "clip.mp4")))
    check(processor, [Message.of("user", *parts, "?"), Message.of("assistant", "Yes.")])


def test_threads_that_read_pictures_leave_pillow_as_it_was() -> None:
    limit = PILImage.MAX_IMAGE_PIXELS
    inside = threading.Barrier(3)

    def read(seconds: float) -> None:
        with reading("x"):
            inside.wait(5)  # two at a time: decoding is not one after the other
            time.sleep(seconds)
            assert PILImage.MAX_IMAGE_PIXELS is None

    threads = [threading.Thread(target=read, args=(seconds,)) for seconds in (0.01, 0.05)]
    for thread in threads:
        thread.start()
    inside.wait(5)
    for thread in threads:
        thread.join()
    assert limit == PILImage.MAX_IMAGE_PIXELS


def test_threads_that_read_clips_leave_stderr_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    media = open_source(MEDIA / "short.mp4")

    def read() -> None:
        for _ in range(10):
            clip.open_clip(media).close()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    import os

    os.write(2, b"still here")
    assert capfd.readouterr().err.endswith("still here")
