"""Clips to patches: which frames, at what size, from which kinds of source, and clips that are broken."""

from __future__ import annotations

import io
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from qvl.errors import MediaError, UsageError
from qvl.messages import Video
from qvl.processing import clip, pillow
from qvl.processing.clip_worker import AvReader
from qvl.processing.image import ImageOptions, frames_to_patches
from qvl.processing.media import Media, open_source
from qvl.processing.prompt import Vision
from qvl.processing.video import (
    VideoOptions,
    frame_count,
    frame_indices,
    frame_range,
    open_clip,
    video_grid,
    video_vision,
)
from tests.unit.media_fixtures import encoded, grey_clip, noise, webm_clip

OPTIONS = VideoOptions()
SMALL = {"min_pixels": 3136, "max_pixels": 12_544}


@pytest.fixture(params=["decord", "av"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(request.param)
    monkeypatch.setenv("QVL_VIDEO_READER", request.param)
    return str(request.param)


def see(source: Any, **options: Any) -> Vision:
    return video_vision(Video(source, **options), OPTIONS, ImageOptions())


def greys(vision: Vision, step: int = 8) -> list[int]:
    """The number of each frame of a `grey_clip`: the mean of its red channel, undone."""
    t, h, w = vision.grid_thw
    red = vision.patches.reshape(t, h * w, 3, 2, 196)[:, :, 0].mean(axis=(1, 3)).ravel()
    return [round(value) for value in (red * 0.26862954 + 0.48145466) * 255 / step]


def refusal(source: Any, kind: type[Exception] = MediaError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        see(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("total", "fps", "wished", "expected"),
    [
        (100, 25.0, {}, 8),
        (250, 25.0, {}, 20),
        (24, 12.0, {}, 4),
        (25, 25.0, {}, 4),  # min_frames
        (3, 25.0, {}, 2),
        (2, 25.0, {}, 2),
        (1, 25.0, {}, 2),  # the frame is taken twice
        (5, 25.0, {}, 4),
        (100_000, 25.0, {}, 768),
        (125, 25.0, {}, 10),
        (62, 25.0, {}, 4),  # 4.96 / 2 rounds to 2
        (63, 25.0, {}, 6),  # 5.04 / 2 rounds to 3
        (100, 25.0, {"fps": 1.0}, 4),
        (100, 25.0, {"fps": 1000.0}, 100),
        (100, 25.0, {"min_frames": 11}, 12),
        (1000, 25.0, {"max_frames": 31}, 30),
        (100, 25.0, {"nframes": 7}, 8),  # 3.5 rounds to 4
        (100, 25.0, {"nframes": 5}, 4),  # 2.5 rounds to 2
        (100, 25.0, {"nframes": 100}, 100),
    ],
)
def test_frame_count(total: int, fps: float, wished: dict[str, Any], expected: int) -> None:
    assert frame_count(total, fps, Video("x", **wished), OPTIONS) == expected


def test_frame_count_refuses() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"nframes": 30}, "nframes 30 is not possible: the clip has 24 frames"),
        ({"nframes": 1}, "nframes 1 "),
        ({"nframes": 4, "fps": 1.0}, "exclude each other"),
        ({"fps": 0.0}, "positive"),
        ({"fps": float("nan")}, "positive"),
        ({"max_frames": 1}, "max_frames 1"),
        ({"min_frames": 10, "max_frames": 8}, "min_frames 10 and max_frames 8"),
    ]
    for wished, message in cases:
        with pytest.raises(UsageError, match=message):
            frame_count(24, 12.0, Video("x", **wished), OPTIONS)
    with pytest.raises(UsageError, match="min_pixels"):
        VideoOptions(min_pixels=10, max_pixels=9)


def test_frame_indices() -> None:
    assert frame_indices(0, 23, 4) == [0, 8, 15, 23]
    assert frame_indices(0, 3, 2) == [0, 3]
    assert frame_indices(0, 0, 2) == [0, 0]
    assert frame_indices(0, 5, 6) == [0, 1, 2, 3, 4, 5]
    assert frame_indices(0, 15, 4) == [0, 5, 10, 15]
    assert frame_indices(1, 6, 3) == [1, 4, 6]  # 3.5 rounds to even
    assert frame_indices(0, 5, 3) == [0, 2, 5]  # 2.5 too


def test_frame_range() -> None:
    assert frame_range(24, 12.0, Video("x")) == (0, 23)
    assert frame_range(24, 12.0, Video("x", video_start=0.5, video_end=1.0)) == (6, 12)
    assert frame_range(24, 12.0, Video("x", video_start=0.51)) == (7, 23)
    assert frame_range(24, 12.0, Video("x", video_start=-5, video_end=99)) == (0, 23)
    for start, end in ((2.0, None), (1.0, 0.5), (float("nan"), None)):
        with pytest.raises(UsageError):
            frame_range(24, 12.0, Video("x", video_start=start, video_end=end))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")],
)
@pytest.mark.usefixtures("reader")
def test_every_container_gives_the_frames_asked_for(name: str, codec: str, tmp_path: Path) -> None:
    if codec == "libvpx":
        path = webm_clip(tmp_path / name, frames=24, fps=12, step=10)
    else:
        path = grey_clip(tmp_path / name, frames=24, fps=12, codec=codec, step=10)
    vision = see(path)
    assert (vision.kind, vision.grid_thw, vision.size) == ("video", (2, 20, 28), (64, 96))
    assert vision.patches.shape == (2 * 20 * 28, 1176)
    assert greys(vision, step=10) == [0, 8, 15, 23]
    assert greys(see(path, nframes=24, **SMALL), step=10) == list(range(24))
    assert greys(see(path, nframes=2, video_start=0.5, video_end=1.0, **SMALL), step=10) == [6, 12]


def test_bytes_and_both_readers_agree_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = grey_clip(tmp_path / "a.mp4", frames=20)
    visions = []
    for name in ("decord", "av"):
        pytest.importorskip(name)
        monkeypatch.setenv("QVL_VIDEO_READER", name)
        visions += [see(path), see(path.read_bytes())]
    for vision in visions[1:]:
        assert np.array_equal(vision.patches, visions[0].patches)


@pytest.mark.parametrize(("frames", "expected"), [(1, [0, 0]), (2, [0, 1]), (3, [0, 2])])
@pytest.mark.usefixtures("reader")
def test_short_clips(frames: int, expected: list[int], tmp_path: Path) -> None:
    path = grey_clip(tmp_path / "short.mp4", frames=frames, step=80)
    assert greys(see(path), step=80) == expected
    assert f"the clip has {frames} frames" in refusal(path, UsageError, nframes=6)


def test_pixels_of_a_clip(tmp_path: Path) -> None:
    path = grey_clip(tmp_path / "a.mp4", frames=20, size=(480, 640))
    assert see(path).grid_thw == (2, 34, 46)
    assert see(path, max_pixels=56_448).grid_thw == (2, 14, 18)
    assert see(path, total_pixels=784 * 200).grid_thw == (2, 20, 26)  # int(1.05 * min_pixels) still holds
    assert see(path, total_pixels=784 * 100, min_pixels=3136).grid_thw == (2, 12, 16)
    assert see(path, resized_height=100, resized_width=200).grid_thw == (2, 8, 14)
    assert "min_pixels" in refusal(path, UsageError, min_pixels=5000, max_pixels=4000)
    assert "given together" in refusal(path, UsageError, resized_height=100)


@pytest.mark.usefixtures("reader")
def test_a_portrait_clip_is_upright(tmp_path: Path) -> None:
    data = bytearray(grey_clip(tmp_path / "a.mp4", frames=4).read_bytes())
    matrix = data.find(b"tkhd") + 44
    quarter = [0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    assert see(bytes(data)).size == (96, 64)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(kind: str) -> None:
    frames = [PILImage.new("RGB", (60, 40), (index * 20,) * 3) for index in range(12)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=250, **options)
    clip = open_clip(open_source(data))
    assert (clip.frames, clip.fps) == (12, 4.0)
    vision = see(data)
    assert (vision.size, greys(vision, step=20)) == ((40, 60), [0, 2, 4, 7, 9, 11])


def test_a_list_of_frames_is_read_like_pictures() -> None:
    frames = [noise(56, 84, seed) for seed in range(3)]
    vision = see([frames[0], encoded(PILImage.fromarray(frames[1])), PILImage.fromarray(frames[2])])
    assert (vision.kind, vision.grid_thw, vision.size) == ("video", (2, 4, 6), (56, 84))
    assert np.array_equal(vision.patches, frames_to_patches(np.stack([*frames, frames[2]]), ImageOptions()))
    assert see(frames[:1]).grid_thw == (1, 4, 6)
    assert see(frames, max_pixels=4704, min_pixels=3136).grid_thw == (2, 4, 6)


def test_many_large_frames_share_the_pixels_of_a_clip() -> None:
    frames = [noise(560, 560)] * 10
    assert see(frames).grid_thw == (5, 40, 40)
    assert see(frames, total_pixels=784 * 500).grid_thw == (5, 20, 20)


def test_lists_that_cannot_be_a_clip() -> None:
    assert refusal([]) == "list of frames: has no frames"
    assert "frame 2 (<ndarray (30, 41, 3)>) is (41, 30), the first is (40, 30)" in refusal(
        [noise(30, 40), noise(30, 41)]
    )
    assert "all frames of a list are used" in refusal([noise(30, 40)], UsageError, nframes=2)
    assert "max_frames is 2" in refusal([noise(30, 40)] * 3, UsageError, max_frames=2)


def test_a_folder_and_a_pattern(tmp_path: Path) -> None:
    for index in (1, 2, 10):
        PILImage.new("RGB", (56, 56), (index * 20,) * 3).save(tmp_path / f"frame{index}.png")
    for source in (tmp_path, str(tmp_path / "frame*.png")):
        assert greys(see(source), step=20) == [1, 2, 10, 10]


def broken_clips(folder: Path) -> dict[str, bytes]:
    whole = grey_clip(folder / "whole.mp4", frames=60, size=(128, 160), step=4).read_bytes()
    body = whole.find(b"mdat") + 60
    scrambled = bytearray(whole)
    scrambled[body : whole.find(b"moov") - 4] = np.random.default_rng(0).bytes(whole.find(b"moov") - 4 - body)
    return {
        "cut.mp4": whole[: len(whole) // 2],
        "scrambled.mp4": bytes(scrambled),
        "text.mp4": b"this is no clip\n" * 100,
        "noise.mp4": np.random.default_rng(1).bytes(20_000),
        "cut.avi": grey_clip(folder / "a.avi", frames=24, codec="mpeg4").read_bytes()[:3000],
        "cut.gif": b"GIF89a\x10\x00",
    }


@pytest.mark.usefixtures("reader")
def test_broken_clips_are_refused_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, data in broken_clips(tmp_path).items():
        path = tmp_path / f"broken-{name}"
        path.write_bytes(data)
        assert refusal(path).startswith(f"{path}: "), name
        assert refusal(data).startswith(f"<{len(data)} bytes>: "), name
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("reader")
def test_sound_without_pictures_and_no_frames_at_all(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert refusal(path) == f"{path}: not a clip that can be read, or a damaged one"
    data = grey_clip(tmp_path / "a.avi", frames=2, codec="mpeg4").read_bytes()
    no_frames = tmp_path / "none.avi"
    no_frames.write_bytes(data[: data.find(b"movi") + 4])
    assert refusal(no_frames).startswith(f"{no_frames}: ")
    assert refusal(tmp_path / "missing.mp4") == f"{tmp_path / 'missing.mp4'}: no such file"
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "empty.mp4") == f"{tmp_path / 'empty.mp4'}: is empty"


def test_frames_before_the_first_key_frame(tmp_path: Path) -> None:
    """As in a recording that begins in the middle: the first frame that decodes stands for them, and no later one."""
    path = grey_clip(tmp_path / "a.mp4", frames=24, step=10)
    reader = AvReader(str(path))
    assert len(reader.keys) == 3
    reader.keys = reader.keys[1:]
    shown = [round(float(frame.mean()) / 10) for frame in reader.read([0, 2, 5, 21])]
    reader.close()
    assert shown == [0, 2, 5, 21]


def test_the_pictures_of_a_motion_jpeg_are_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV reads them; decord says that it cannot."""
    monkeypatch.setenv("QVL_VIDEO_READER", "av")
    pictures = [io.BytesIO() for _ in range(8)]
    for number, file in enumerate(pictures):
        PILImage.new("RGB", (64, 64), (30 * number,) * 3).save(file, "JPEG")
    path = tmp_path / "camera.mjpeg"
    path.write_bytes(b"".join(file.getvalue() for file in pictures))
    assert see(path, nframes=8).grid_thw[0] == 4
    with closing(open_clip(Media("https://host/camera.mjpg?...", data=path.read_bytes()))) as from_url:
        assert from_url.frames == 8


def test_a_reader_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = grey_clip(tmp_path / "a.mp4", frames=4)
    monkeypatch.setenv("QVL_VIDEO_READER", "decrod")
    assert "did you mean 'decord'?" in refusal(path, UsageError)
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setenv("QVL_VIDEO_READER", "decord")
    assert refusal(path, UsageError).endswith("decord is not installed: pip install decord")
    monkeypatch.setenv("QVL_VIDEO_READER", "auto")
    assert see(path).grid_thw == (2, 20, 28)
    monkeypatch.setitem(sys.modules, "av", None)
    assert refusal(path, UsageError) == "no video reader is installed: pip install av"


def test_stdin_may_be_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = grey_clip(tmp_path / "a.mp4", frames=4).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert see("-").grid_thw == (2, 20, 28)
    assert os.environ.get("DECORD_EOF_RETRY_MAX", "128") == "128"


def test_a_clip_that_crashes_a_decoder_does_not_end_the_program(tmp_path: Path) -> None:
    data = bytearray((Path(__file__).parents[2] / "examples" / "moving.mp4").read_bytes())
    data[631] = 0xA7  # decord then asks for more memory than there is, and aborts
    path = tmp_path / "crash.mp4"
    path.write_bytes(data)
    assert see(path, max_pixels=12_544, min_pixels=3136).kind == "video"  # PyAV reads it


def test_a_decoder_that_crashes_without_a_second_one_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QVL_VIDEO_READER", "av")
    reader = open_clip(open_source(grey_clip(tmp_path / "a.mp4", frames=40, size=(480, 640))))
    assert isinstance(reader, clip.Clip)
    frames = reader.read(range(40))
    next(frames)
    reader.worker.process.kill()
    with pytest.raises(MediaError, match="damaged, av crashes on it"):
        list(frames)
    reader.close()
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_crashes_half_way_is_replaced_frame_by_frame(tmp_path: Path) -> None:
    media = open_source(grey_clip(tmp_path / "a.mp4", frames=30, size=(480, 640)))
    whole = open_clip(media)
    expected = [int(frame.mean()) for frame in whole.read(range(30))]
    whole.close()
    broken = open_clip(media)
    assert isinstance(broken, clip.Clip)
    frames = broken.read(range(30))
    seen = [int(next(frames).mean())]
    broken.worker.process.kill()
    seen += [int(frame.mean()) for frame in frames]
    broken.close()
    assert np.abs(np.subtract(seen, expected)).max() <= 1


def test_a_clip_that_hangs_its_decoder_meets_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = grey_clip(tmp_path / "a.mp4", frames=4)
    monkeypatch.setattr(clip, "DEADLINE", 0.0001)
    monkeypatch.setattr(clip, "_borrow", lambda reader, _: clip._Worker(reader))  # it takes a while to start
    assert refusal(path) == f"{path}: not decoded after 0.0001 s"


def test_a_tall_and_narrow_clip_is_read(tmp_path: Path) -> None:
    path = grey_clip(tmp_path / "tall.mp4", frames=5, size=(2000, 16), codec="mpeg4")
    assert see(path).size == (2000, 16)


def test_decoders_are_kept_for_the_next_clip_unless_one_went_wrong(tmp_path: Path) -> None:
    media = open_source(grey_clip(tmp_path / "a.mp4", frames=20))
    first = open_clip(media)
    first.close()
    second = open_clip(media)
    assert isinstance(first, clip.Clip) and isinstance(second, clip.Clip) and first.worker is second.worker
    next(second.read(range(1)))  # as measuring a clip does, which thousands of a data set are
    second.close()
    third = open_clip(media)
    assert isinstance(third, clip.Clip) and third.worker is second.worker
    next(third.read(range(20)))  # and no more: the rest is still to come through the pipe
    third.close()
    assert third.worker.process.poll() is not None


def test_a_clip_asked_for_in_more_pixels_than_memory_holds_is_refused(tmp_path: Path) -> None:
    path = grey_clip(tmp_path / "a.mp4", frames=20)
    for wish in ({"min_pixels": 10_000_000}, {"resized_height": 3000, "resized_width": 3000}):
        assert "tokens), over the 102760448 of a clip; lower min_pixels" in refusal(
            path, UsageError, nframes=20, **wish
        )
    assert "min_pixels asks for 999999999999 pixels" in refusal(path, UsageError, min_pixels=999_999_999_999)
    with pytest.raises(UsageError, match="of a clip; lower"):
        video_grid(Video([noise(40, 40)] * 20, resized_height=3000, resized_width=3000), OPTIONS, ImageOptions())


def test_an_animation_of_endless_frames_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PILImage.new("L", (50, 50)), "GIF", save_all=True, append_images=[PILImage.new("L", (50, 50), 9)])
    monkeypatch.setattr(pillow, "MAX_ANIMATION_PIXELS", 4999)
    assert "2 frames of 50x50 pixels are over the limit" in refusal(data)
