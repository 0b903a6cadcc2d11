"""Every form of one image gives the same pixels, and every bad one a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reprise.data.prepare.decode import BadImageError, decode
from reprise.inference.sources import decoded, named_images, pixels
from reprise.model.artifact import Preprocessing
from reprise.runtime.errors import UserError
from tests.data.prepare.test_decode import encoded

KEPT = Preprocessing(image_size=8, channels=3, mean=[0.5] * 3, std=[0.5] * 3)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_pillows_gives_the_pixels_of_its_file(mode, orientation):
    image = Image.fromarray(NOISE.view(np.uint16)[:, :, 0]) if mode == "I;16" else Image.fromarray(NOISE).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG", exif=exif)
    opened = Image.open(io.BytesIO(file))
    assert np.array_equal(pixels(opened, KEPT), decode(file, 8, 3).pixels)
    assert opened.tobytes() == image.tobytes() or opened.format == "TIFF"  # as it was


def test_a_transparent_palette_lies_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    assert np.array_equal(pixels(image, KEPT), np.full((8, 8, 3), 255))


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_an_array_is_gray_or_color_and_opacity_lays_it_on_white(channels):
    array = NOISE[:8, :8, :channels] if channels else NOISE[:8, :8, 0]
    got = pixels(array, KEPT)
    assert np.array_equal(got, decode(encoded(Image.fromarray(array[..., 0] if channels == 1 else array)), 8, 3).pixels)
    if channels == 3:
        assert np.array_equal(got, array)


@pytest.mark.parametrize("array", [NOISE[:, :, :0], NOISE[0, :, 0], NOISE[:, :, :, None], NOISE.astype(np.int64)])
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(BadImageError, match=r"uint8 \(H, W\) or \(H, W, 1 to 4\) is needed"):
        pixels(array, KEPT)


def test_an_opened_tiff_of_16_bits_may_be_inverted_and_is_refused():
    opened = Image.open(io.BytesIO(encoded(Image.fromarray(NOISE.view(np.uint16)[:, :, 0]), "TIFF")))
    with pytest.raises(BadImageError, match="give its path or its bytes"):
        pixels(opened, KEPT)


def test_open_files_and_whatever_holds_bytes_are_read():
    held = encoded(Image.fromarray(NOISE))
    given = io.BufferedReader(io.BytesIO(held)), io.BytesIO(held), bytearray(held), memoryview(held)
    assert [list(named_images(each)) for each in given] == [[("0", held)]] * 4
    given[0].close()
    assert list(decoded(named_images([given[0]]), KEPT, 1)) == [("0", "read of closed file")]


def test_what_holds_no_images_is_refused():
    for given in ({"a.png": 1}, "", ["a.png", ""]):
        with pytest.raises(UserError, match="neither a path nor an image; give one or a list of them"):
            list(named_images(given))


def test_what_is_no_file_is_not_read(tmp_path):
    for path in (tmp_path, tmp_path / "pipe"):
        if path != tmp_path:
            __import__("os").mkfifo(path)
        with pytest.raises(BadImageError, match="a folder or a device"):
            pixels(path, KEPT)


def test_names_are_relative_and_in_a_list_have_their_path_before_them(tmp_path):
    for name in ("b/1.png", "b/.hidden.png", "a/2.png", "a/10.heic", "notes.txt"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(encoded(Image.new("L", (4, 4))))
    tree = str(tmp_path / "tree")
    found = ["a/10.heic", "a/2.png", "b/1.png"]
    assert [name for name, _ in named_images(tree)] == found
    several = [name for name, _ in named_images([NOISE, tree, f"{tree}/b/1.png"])]
    assert several == ["0", *(f"{tree}/{name}" for name in found), f"{tree}/b/1.png"]
    assert [name for name, _ in named_images(np.zeros((2, 4, 4, 1), np.uint8))] == ["0", "1"]


def test_a_path_that_no_system_takes_is_a_reason_like_any_other():
    given = ["a\0.png", "a" * 300 + "/b.png"]
    assert list(decoded(((name, Path(name)) for name in given), KEPT, 1)) == [
        (given[0], "embedded null byte"),
        (given[1], "File name too long"),
    ]
