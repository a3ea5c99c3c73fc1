"""Pictures to patches: sizes, modes, orientation, and files that are not what they seem."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PILImage
from PIL import features

from qvl.errors import MediaError, UsageError
from qvl.messages import Image
from qvl.processing.frames import frame_files
from qvl.processing.image import ImageOptions, frames_to_patches, image_vision, load_image
from qvl.processing.pillow import FORMATS
from tests.unit.media_fixtures import encoded, noise, png_header

OPTIONS = ImageOptions()


def reference_patches(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The steps of the reference image processor, written out."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    pixels = ((frames.astype(np.float64) * (1 / 255)).astype(np.float32) - mean) / std
    t, h, w = len(frames) // 2, frames.shape[1] // 14, frames.shape[2] // 14
    cut = pixels.transpose(0, 3, 1, 2).reshape(t, 2, 3, h // 2, 2, 14, w // 2, 2, 14)
    return cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 1176)


def pixels(source: Any, **options: Any) -> npt.NDArray[np.uint8]:
    return np.asarray(load_image(source, **options))


def refusal(source: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would reach the user's screen
        with pytest.raises(MediaError) as caught:
            image_vision(Image(source), OPTIONS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_golden_sizes() -> None:
    vision = image_vision(Image(PILImage.new("RGB", (2048, 1365))), OPTIONS)
    assert (vision.kind, vision.grid_thw, vision.size) == ("image", (1, 98, 146), (1365, 2048))
    assert vision.patches.shape == (98 * 146, 1176)
    assert vision.patches.dtype == np.float32


def test_patches_are_the_references_to_the_bit() -> None:
    frame = noise(56, 84)
    expected = reference_patches(np.stack([frame, frame]))
    assert np.array_equal(frames_to_patches(frame[None], OPTIONS), expected)
    assert np.array_equal(image_vision(Image(frame), OPTIONS).patches, expected)
    clip = np.stack([noise(28, 56, seed) for seed in range(4)])
    assert np.array_equal(frames_to_patches(clip, OPTIONS), reference_patches(clip))


def test_resize_is_pillows_bicubic() -> None:
    picture = PILImage.fromarray(noise(100, 130))
    resized = np.asarray(picture.resize((140, 112), PILImage.Resampling.BICUBIC))
    assert np.array_equal(
        image_vision(Image(picture), OPTIONS).patches, reference_patches(np.stack([resized, resized]))
    )


@pytest.mark.parametrize(
    ("limits", "grid"),
    [
        ({"max_pixels": 10_000}, (1, 4, 10)),
        ({"min_pixels": 300_000}, (1, 28, 56)),
        ({"resized_height": 100, "resized_width": 300}, (1, 8, 22)),
        ({"resized_height": 100, "resized_width": 300, "max_pixels": 4000}, (1, 8, 22)),
        ({"resized_height": 1, "resized_width": 1}, (1, 4, 4)),
    ],
)
def test_limits_of_the_message(limits: dict[str, int], grid: tuple[int, int, int]) -> None:
    vision = image_vision(Image(noise(100, 200), **limits), OPTIONS)
    assert (vision.grid_thw, vision.size) == (grid, (100, 200))


def test_limits_that_make_no_sense() -> None:
    for limits in ({"min_pixels": 9000, "max_pixels": 8000}, {"resized_height": 100}, {"max_pixels": -1}):
        with pytest.raises(UsageError):
            image_vision(Image(noise(100, 200), **limits), OPTIONS)
    with pytest.raises(UsageError):
        image_vision(Image(noise(100, 200)), ImageOptions(min_pixels=9000, max_pixels=8000))


def test_tiny_and_extreme_pictures() -> None:
    assert image_vision(Image(noise(1, 1)), OPTIONS).grid_thw == (1, 4, 4)
    assert image_vision(Image(noise(2, 400)), OPTIONS).grid_thw == (1, 2, 28)
    assert "401x2 is too long and narrow" in refusal(noise(2, 401))


def test_options_from_both_forms_of_the_file() -> None:
    older = {"min_pixels": 4000, "max_pixels": 8000, "image_mean": [0.5, 0.5, 0.5], "patch_size": 14, "do_resize": True}
    newer = {"size": {"shortest_edge": 4000, "longest_edge": 8000}, "image_mean": [0.5, 0.5, 0.5]}
    expected = ImageOptions(min_pixels=4000, max_pixels=8000, image_mean=(0.5, 0.5, 0.5))
    assert ImageOptions.from_preprocessor_config(older) == expected
    assert ImageOptions.from_preprocessor_config(newer) == expected
    override = ImageOptions.from_preprocessor_config(older, max_pixels=9000, min_pixels=None)
    assert (override.min_pixels, override.max_pixels) == (4000, 9000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_picture_is_upright(orientation: int, tmp_path: Path) -> None:
    picture = PILImage.fromarray(noise(20, 30))
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.png"
    picture.save(path, exif=exif)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL.Image.Transpose values
    upright = picture.transpose(PILImage.Transpose(turns[orientation])) if orientation > 1 else picture
    assert np.array_equal(pixels(path), np.asarray(upright))
    assert np.array_equal(pixels(path, raw_pixels=True), np.asarray(picture))
    assert image_vision(Image(path), OPTIONS).size == ((30, 20) if orientation >= 5 else (20, 30))


def test_plain_rgb_is_the_same_either_way() -> None:
    data = encoded(PILImage.fromarray(noise(30, 40)), "JPEG")
    assert np.array_equal(pixels(data), pixels(data, raw_pixels=True))


def test_transparency_lies_on_white_paper() -> None:
    clear = PILImage.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (pixels(encoded(clear)) == 255).all()
    assert (pixels(encoded(clear), raw_pixels=True) == (10, 20, 30)).all()
    assert (pixels(PILImage.new("RGBA", (4, 4), (0, 0, 0, 51))) == 204).all()
    assert (pixels(encoded(PILImage.new("LA", (4, 4), (0, 0)))) == 255).all()
    palette = PILImage.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    assert (pixels(encoded(palette, transparency=0)) == 255).all()
    assert (pixels(encoded(palette)) == 9).all()


def test_deep_greyscale_is_scaled_to_eight_bits() -> None:
    ramp = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    assert pixels(encoded(PILImage.fromarray(ramp)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert pixels(encoded(PILImage.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert pixels(PILImage.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(PILImage.fromarray(np.array([[-100, 0, 104]], np.int32)))[0, :, 0].tolist() == [0, 125, 255]
    assert pixels(PILImage.fromarray(np.array([[0, 7, 255]], np.int32)))[0, :, 0].tolist() == [0, 7, 255]


def test_other_modes() -> None:
    assert (pixels(encoded(PILImage.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG")) < 5).all()
    assert (pixels(encoded(PILImage.new("1", (4, 4), 1))) == 255).all()
    assert (pixels(np.full((4, 5), 7, np.uint8)) == 7).all()
    frames = [PILImage.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)).all()


def test_a_pil_image_of_the_caller_is_left_alone() -> None:
    picture = PILImage.new("RGBA", (4, 4), (0, 0, 0, 0))
    load_image(picture)
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGBA", (0, 0, 0, 0))


def test_arrays_of_another_kind_are_refused() -> None:
    for array in (
        noise(4, 4).astype(np.float32),
        noise(4, 4)[..., :2],
        noise(4, 4)[None],
        np.zeros((0, 4, 3), np.uint8),
    ):
        assert "uint8 [H, W], [H, W, 3] or [H, W, 4] expected" in refusal(array)
    assert "not a picture" in refusal(42)


def test_files_that_are_not_pictures(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("this is not a picture")
    assert refusal(path) == f"{path}: not a picture, or not one of {', '.join(FORMATS)}"
    path.write_bytes(b"")
    assert refusal(path) == f"{path}: is empty"
    assert refusal(tmp_path) == f"{tmp_path}: is a directory"
    assert refusal(tmp_path / "no.png") == f"{tmp_path / 'no.png'}: no such file"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_file(kind: str, tmp_path: Path) -> None:
    data = encoded(PILImage.fromarray(noise(100, 100)), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    assert refusal(path).startswith(f"{path}: ")


def test_a_bomb_is_refused_by_its_header() -> None:
    limit = PILImage.MAX_IMAGE_PIXELS
    assert "60000x60000 pixels are over the limit of 400 megapixels" in refusal(png_header(60000, 60000))
    assert limit == PILImage.MAX_IMAGE_PIXELS


def test_a_picture_above_pillows_own_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PILImage.fromarray(noise(40, 40)))
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    assert pixels(data).shape == (40, 40, 3)
    assert PILImage.MAX_IMAGE_PIXELS == 100


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("frame10.png", "frame2.PNG", "frame1.jpg", "notes.txt", ".frame0.png"):
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("frame1.jpg", "frame2.PNG", "frame10.png")]
    assert frame_files(tmp_path) == expected
    assert frame_files(str(tmp_path / "frame*")) == expected
    assert frame_files(tmp_path / "frame2.PNG") is None
    assert frame_files("http://host/a*.png") is None
    for nothing in (tmp_path / "none*.png", tmp_path / "*.txt"):
        with pytest.raises(MediaError, match="no picture files there"):
            frame_files(nothing)


def test_postscript_that_is_called_jpg_starts_no_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    PILImage.new("RGB", (20, 20)).save(path, "EPS")
    assert refusal(path).startswith(f"{path}: not a picture, or not one of JPEG, MPO, PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_that_messages_name_is_read(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip(f"this Pillow was built without {kind}")
    assert pixels(encoded(PILImage.fromarray(noise(40, 40)), kind)).shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", 0),
        ("merge_size", [2]),
        ("temporal_patch_size", True),
        ("min_pixels", "x"),
        ("max_pixels", 1e999),
        ("image_std", [0.5, 0, 0.5]),
        ("image_mean", [0.5]),
        ("image_mean", 5),
        ("rescale_factor", -1),
        ("size", 5),
        ("size", {"shortest_edge": "x"}),
    ],
)
def test_a_damaged_preprocessor_file_names_the_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{key}.* is .*expected"):
        ImageOptions.from_preprocessor_config({key: value})


def test_a_picture_asked_for_in_billions_of_pixels_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="min_pixels asks for 999999999999 pixels"):
        image_vision(Image(noise(10, 10), min_pixels=999_999_999_999), OPTIONS)
    with pytest.raises(UsageError, match="resized_height 100000 and resized_width 100000"):
        image_vision(Image(noise(10, 10), resized_height=100_000, resized_width=100_000), OPTIONS)
