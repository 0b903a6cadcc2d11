"""Every kind of image becomes the pixels that a person would expect; every broken one says why."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from reprise.data.images import BadImageError, decode, is_grey
from reprise.data.sources import encode_array


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_of_the_right_size_pass_unchanged():
    pixels = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(decode(encode_array(pixels), 8, 3), pixels)
    assert np.array_equal(decode(encode_array(pixels[:, :, 0]), 8, 1)[:, :, 0], pixels[:, :, 0])


def test_a_grey_image_becomes_three_equal_channels_and_a_colour_one_its_luma():
    grey = encode_array(np.full((8, 8), 77, np.uint8))
    assert np.array_equal(decode(grey, 8, 3), np.full((8, 8, 3), 77))
    red = encode_array(np.broadcast_to(np.array([255, 0, 0], np.uint8), (8, 8, 3)))
    assert np.array_equal(decode(red, 8, 1), np.full((8, 8, 1), 76))  # 0.299 of 255


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert abs(decode(encode_array(stripes), 8, 1).astype(int) - 127).max() <= 8  # nearest would give 0 or 255


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (decode(encoded(clear), 8, 3) == 255).all()


def test_sixteen_bits_keep_the_upper_eight():
    deep = Image.fromarray(np.full((8, 8), 0x7F00, np.uint16))
    assert (decode(encoded(deep), 8, 1) == 0x7F).all()


def test_a_photo_is_turned_upright():
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8).repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95), 16, 1)[:, :, 0]
    assert upright[:6].mean() < 10
    assert upright[-6:].mean() > 245


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("L", True), ("1", True), ("LA", True), ("I;16", True), ("RGB", False), ("RGBA", False), ("P", False)],
)
def test_grey_is_told_by_the_header(mode, grey):
    assert is_grey(encoded(Image.new(mode, (8, 8)))) is grey


def bomb(side=60_000):
    """Return a PNG that claims side x side pixels in a few hundred bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-400], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1000], "truncated|broken|incomplete"),
        (bomb(), "decompression bomb"),
        (bomb(10_000), "10000 x 10000 pixels, more than 89,478,485"),  # Pillow itself only warns
    ],
    ids=["empty", "html", "truncated-jpeg", "truncated-png", "bomb", "smaller-bomb"],
)
def test_a_broken_image_says_why(content, reason):
    with pytest.raises(BadImageError, match=reason):
        decode(content, 8, 3)
