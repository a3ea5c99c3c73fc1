"""Every kind of clip gives the frames asked for: their order, their times, and what a file leaves out are its own."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qvl.messages import Video
from qvl.processing.clip import open_clip
from qvl.processing.clip_worker import AvReader
from qvl.processing.media import open_source
from qvl.processing.video import frame_range

FRAMES = 48


def numbered(path: Path, codec: str, b_frames: int, *, frames: int = FRAMES, keys: int = 12) -> Path:
    """A clip of 30 frames a second whose frame i is of grey 8 + 5i, as far as it goes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = keys, b_frames
        for index in range(frames):
            grey = np.full((48, 64, 3), 8 + 5 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(path: Path, indices: list[int]) -> list[int]:
    """The numbers of the frames that come for these."""
    with closing(open_clip(open_source(path))) as reader:
        return [round((float(frame.mean()) - 8) / 5) for frame in reader.read(indices)]


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("a.mp4", "libx264", 2),
        ("a.mp4", "mpeg4", 2),
        ("a.mov", "mpeg2video", 2),
        ("a.mkv", "libx264", 3),
        ("a.avi", "libx264", 0),
        ("a.avi", "libx264", 2),
        ("a.avi", "mpeg4", 2),
        ("a.ts", "libx264", 2),
        ("a.ts", "mpeg2video", 2),
        ("a.m2ts", "libx264", 0),
        ("a.mpg", "mpeg1video", 0),
        ("a.mpg", "mpeg2video", 2),
        ("a.flv", "libx264", 2),
        ("a.wmv", "wmv2", 0),
        ("a.h264", "libx264", 2),
    ],
)
def test_the_frames_of_every_container_are_those_asked_for(
    name: str, codec: str, b_frames: int, tmp_path: Path
) -> None:
    path = numbered(tmp_path / name, codec, b_frames)
    for wanted in ([0, 7, 13, 20, 27, 34, 40, 47], [25, 26, 46], [11], [47]):
        got = shown(path, wanted)
        # A lossy codec may mistake a grey for the next one, not for that of another group of pictures.
        assert [abs(one - other) <= 1 for one, other in zip(got, wanted, strict=True)] == [True] * len(wanted), got


def test_a_long_clip_is_read_to_its_end(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4", "libx264", 3, frames=49, keys=250)
    assert shown(path, [0, 16, 32, 48]) == [0, 16, 32, 48]
    assert shown(path, list(range(49))) == list(range(49))


@pytest.mark.parametrize("first", [5, 20, 31])
def test_of_a_clip_cut_without_encoding_it_anew_the_frames_before_the_cut_are_none(first: int, tmp_path: Path) -> None:
    """The packets from the last key frame on are there, and an edit list says where to begin."""
    whole = numbered(tmp_path / "whole.mp4", "libx264", 2)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        start = int(Fraction(first, 30) / stream.time_base)
        packets = [packet for packet in source.demux(stream) if packet.size]
        key = max(packet.dts for packet in packets if packet.is_keyframe and packet.pts <= start)
        for packet in packets:
            if packet.dts >= key:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                target.mux(packet)
    count = FRAMES - first
    wanted = [0, count // 3, count // 2, count - 1]
    with closing(open_clip(open_source(tmp_path / "cut.mp4"))) as reader:
        assert reader.frames == count
    assert shown(tmp_path / "cut.mp4", wanted) == [first + number for number in wanted]


@pytest.mark.parametrize("rate", ["none", "unit of time"])
def test_a_recording_that_does_not_state_its_rate_lasts_as_long_as_its_frames(rate: str, tmp_path: Path) -> None:
    """As browsers make them: some state no rate, others that of their clock."""
    path = tmp_path / "recorded.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(48):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 100 * index, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if rate == "none":
        data = bytearray(path.read_bytes())
        place = data.index(b"\x23\xe3\x83")  # DefaultDuration becomes a void element
        data[place : place + 2] = b"\xec\x85"
        path.write_bytes(data)
    with closing(open_clip(open_source(path))) as reader:
        assert reader.frames == 48 and reader.fps == pytest.approx(10, rel=0.02)
        assert frame_range(reader.frames, reader.fps, Video("x", video_start=2.0))[0] in (20, 21)


def test_frames_may_be_asked_for_again(tmp_path: Path) -> None:
    reader = AvReader(str(numbered(tmp_path / "a.mp4", "libx264", 2)))
    for wanted in ([0, 30], [0, 30], [47, 3, 20]):
        assert [round((float(frame.mean()) - 8) / 5) for frame in reader.read(wanted)] == wanted
    reader.close()
