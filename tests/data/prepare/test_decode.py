"""Every kind of image becomes the pixels that a person would expect; every broken one says why."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from reprise.data.download.sources import encode_array
from reprise.data.prepare.decode import BadImageError, decode, is_gray


def pixels_of(*arguments):
    return decode(*arguments)[0]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_of_the_right_size_pass_unchanged():
    pixels = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(pixels_of(encode_array(pixels), 8, 3), pixels)
    assert np.array_equal(pixels_of(encode_array(pixels[:, :, 0]), 8, 1)[:, :, 0], pixels[:, :, 0])


def test_a_gray_image_becomes_three_equal_channels_and_a_color_one_its_luma():
    gray = encode_array(np.full((8, 8), 77, np.uint8))
    assert np.array_equal(pixels_of(gray, 8, 3), np.full((8, 8, 3), 77))
    red = encode_array(np.broadcast_to(np.array([255, 0, 0], np.uint8), (8, 8, 3)))
    assert np.array_equal(pixels_of(red, 8, 1), np.full((8, 8, 1), 76))  # 0.299 of 255


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert abs(pixels_of(encode_array(stripes), 8, 1).astype(int) - 127).max() <= 8  # nearest would give 0 or 255


def palette(*, kind, transparency=None):
    """Return a paletted image: the left half (10, 200, 30), the right half (250, 40, 90)."""
    image = Image.new("P", (8, 8))
    image.putpalette([10, 200, 30, 250, 40, 90])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, kind, **({} if transparency is None else {"transparency": transparency}))


def png(header, rows):
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    packed = [struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def halves(mode, left, right, kind, **options):
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return encoded(image, kind, **options)


def frames(kind, **options):
    first, second = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 200)
    first.paste(255, (4, 0, 8, 8))
    return encoded(first, kind, save_all=True, append_images=[second], **options)


def sixteen_bits(kind, **options):
    pixels = np.full((8, 8), 0x12FF, np.uint16)
    pixels[:, 4:] = 0xFE00
    return encoded(Image.fromarray(pixels), kind, **options)


LEFT, RIGHT = (10, 200, 30), (250, 40, 90)
CMYK_LEFT, CMYK_RIGHT = (245, 55, 225, 0), (5, 215, 165, 0)  # the same colors as ink
WHITE, BLACK = (255,) * 3, (0,) * 3


@pytest.mark.parametrize(
    ("content", "left", "right", "off"),
    [
        (halves("RGB", LEFT, RIGHT, "JPEG", quality=100, subsampling=0), LEFT, RIGHT, 3),
        (halves("L", 30, 220, "JPEG", quality=100), (30,) * 3, (220,) * 3, 3),
        (halves("CMYK", CMYK_LEFT, CMYK_RIGHT, "JPEG", quality=100), LEFT, RIGHT, 3),  # stored inverted, as Adobe does
        (halves("CMYK", CMYK_LEFT, CMYK_RIGHT, "TIFF"), LEFT, RIGHT, 0),
        (halves("RGB", LEFT, RIGHT, "PNG"), LEFT, RIGHT, 0),
        (halves("RGB", LEFT, RIGHT, "WEBP", lossless=True), LEFT, RIGHT, 0),
        (halves("RGB", LEFT, RIGHT, "BMP"), LEFT, RIGHT, 0),
        (halves("RGB", LEFT, RIGHT, "TIFF", compression="tiff_lzw"), LEFT, RIGHT, 0),
        (halves("1", 0, 1, "PNG"), BLACK, WHITE, 0),
        (halves("1", 0, 1, "BMP"), BLACK, WHITE, 0),
        (halves("1", 0, 1, "TIFF", compression="group4"), BLACK, WHITE, 0),
        (palette(kind="PNG"), LEFT, RIGHT, 0),
        (palette(kind="GIF"), LEFT, RIGHT, 0),
        (palette(kind="BMP"), LEFT, RIGHT, 0),
        (palette(kind="PNG", transparency=1), LEFT, WHITE, 0),
        (palette(kind="PNG", transparency=bytes([255, 128])), LEFT, (252, 147, 172), 1),
        (palette(kind="GIF", transparency=0), WHITE, RIGHT, 0),
        (halves("RGBA", (*LEFT, 255), (*RIGHT, 0), "PNG"), LEFT, WHITE, 0),
        (halves("RGBA", (*LEFT, 255), (0, 0, 0, 51), "WEBP", lossless=True), LEFT, (204,) * 3, 1),
        (halves("RGBA", (*LEFT, 255), (*RIGHT, 0), "TIFF"), LEFT, WHITE, 0),
        (halves("LA", (77, 255), (0, 0), "PNG"), (77,) * 3, WHITE, 0),
        (halves("RGB", LEFT, RIGHT, "PNG", transparency=RIGHT), LEFT, WHITE, 0),
        (sixteen_bits("PNG"), (0x12,) * 3, (0xFE,) * 3, 0),
        (sixteen_bits("TIFF"), (0x12,) * 3, (0xFE,) * 3, 0),
        (sixteen_bits("PNG", transparency=0xFE00), (0x12,) * 3, WHITE, 0),
        (b"P5 2 1 65535\n" + bytes([0x12, 0xFF, 0xFE, 0x00]), (0x12,) * 3, (0xFE,) * 3, 0),
        (frames("GIF"), BLACK, WHITE, 0),
        (frames("TIFF"), BLACK, WHITE, 0),
        (frames("WEBP", lossless=True), BLACK, WHITE, 0),
        (frames("PNG"), BLACK, WHITE, 0),
    ],
)
def test_each_kind_of_image_has_the_colors_that_a_person_sees(content, left, right, off):
    decoded = pixels_of(content, 8, 3).astype(int)
    for pixels, color in ((decoded[:, :2], left), (decoded[:, 6:], right)):  # between them, some formats blend
        assert abs(pixels - color).max() <= off
    luma = np.dot((left, right), (0.299, 0.587, 0.114))
    assert abs(pixels_of(content, 8, 1)[0, [0, 7], 0] - luma).max() <= off + 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(Image.new("F", (8, 8)), "TIFF"), "floating-point pixels"),
        (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "pixels outside 0 to 65,535"),
        (encoded(Image.new("RGB", (8, 8)), "EPS"), "not an image"),  # would start Ghostscript
    ],
)
def test_pixels_without_a_stated_meaning_are_refused(content, reason):
    with pytest.raises(BadImageError, match=reason):
        pixels_of(content, 8, 1)


def test_long_texts_and_color_profiles_and_large_photos_are_no_reason_to_refuse_an_image():
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    plain = pixels_of(encoded(Image.fromarray(gradient(8, 8))), 8, 3)
    options = {"pnginfo": text, "icc_profile": bytes(3_000_000)}
    assert np.array_equal(pixels_of(encoded(Image.fromarray(gradient(8, 8)), **options), 8, 3), plain)
    assert decode(encoded(Image.new("L", (12_000, 9_000), 77), "JPEG"), 8, 3).size == (12_000, 9_000)
    assert decode(encoded(Image.new("1", (12_000, 9_000), 1), "PNG"), 8, 1).pixels.min() == 255
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # as it was


def damaged_exif():
    """Return a JPEG of one color whose EXIF claims five entries and ends in the first."""
    content = encoded(Image.new("RGB", (8, 8), LEFT), "JPEG", quality=100)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def test_an_image_of_which_nothing_is_visible_is_told():
    for kind, alpha, said in (("TGA", 0, "every pixel is transparent"), ("PNG", 1, "")):
        assert decode(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, alpha)), kind), 4, 3).complaint == said


def test_a_damaged_exif_is_told_and_does_not_hinder(recwarn):
    decoded = decode(damaged_exif(), 8, 3)
    assert decoded.complaint.startswith("Corrupt EXIF data.")
    assert abs(decoded.pixels.astype(int) - LEFT).max() <= 1
    assert not recwarn.list


MUTATED = {
    "JPEG": [{}, {"progressive": True}, {"quality": 95}],
    "PNG": [{}, {"compress_level": 0}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}],
    "BMP": [{}],
    "PPM": [{}],
    "AVIF": [{}],
}


def mutated(content, random):
    """Cut, overwrite, take out or repeat a few bytes, half of the time near the beginning."""
    place = int(random.integers(len(content) if random.random() < 0.5 else 100))
    length = int(random.integers(1, 60))
    rest = content[place + length :]
    extreme = struct.pack(random.choice(["<I", ">I"]), random.choice([0, 1, 65_536, 0x7FFFFFFF, 0xFFFFFFFF]))
    return content[:place] + (b"", rest, bytes(length) + rest, random.bytes(length) + rest, extreme + rest)[length % 5]


@pytest.mark.parametrize("kind", MUTATED)
def test_a_damaged_file_is_read_or_named_and_no_library_speaks(kind, capfd, recwarn):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((48, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    named = 0
    for options in MUTATED[kind]:
        content = encoded(image, kind, **options, **({} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}))
        assert decode(content, 16, 3).complaint == ""
        for _ in range(120 // len(MUTATED[kind])):
            try:
                decode(mutated(content, random), 16, 3)
            except BadImageError as error:
                named += len(str(error).splitlines()) == 1
    assert named > 30
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, "ab cd"), (2, "ba dc"), (3, "dc ba"), (4, "cd ab"), (5, "ac bd"), (6, "ca db"), (7, "db ca"), (8, "bd ac")],
)
def test_a_photo_is_turned_upright(kind, orientation, upright):
    image = Image.fromarray(np.array([[10, 80], [150, 220]], np.uint8).repeat(8, 0).repeat(8, 1)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    seen = pixels_of(content, 16, 1)[[[4, 4], [12, 12]], [4, 12], 0].astype(int)
    values = {"a": 10, "b": 80, "c": 150, "d": 220}
    assert abs(seen - [[values[letter] for letter in row] for row in upright.split()]).max() <= 2


def gradient(width, height):
    """Return an image whose red grows by the column and green by the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    pixels[..., 2] = 255
    return pixels


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (64, 64), (32, 32)])
def test_resize_stretches_or_keeps_all_or_keeps_the_middle(size):
    width, height = size
    content = encode_array(gradient(width, height))
    side, (left, top) = min(size), ((width - min(size)) / 2, (height - min(size)) / 2)

    stretched = pixels_of(content, 16, 3, "stretch").astype(float)
    assert abs(stretched[8, :, 0] - (np.arange(16) + 0.5) * width / 16 + 0.5).max() <= 1.5
    assert abs(stretched[:, 8, 1] - (np.arange(16) + 0.5) * height / 16 + 0.5).max() <= 1.5

    cropped = pixels_of(content, 16, 3, "crop").astype(float)
    assert abs(cropped[8, :, 0] - (left + (np.arange(16) + 0.5) * side / 16 - 0.5)).max() <= 1.5
    assert abs(cropped[:, 8, 1] - (top + (np.arange(16) + 0.5) * side / 16 - 0.5)).max() <= 1.5

    fitted = pixels_of(content, 16, 3, "fit")
    inner = 16 * np.array(size) // max(size)
    rows, columns = ((fitted[..., 2] == 255).any(axis=axis).nonzero()[0] for axis in (1, 0))
    assert (columns[0], len(columns)) == ((16 - inner[0]) // 2, inner[0])
    assert (rows[0], len(rows)) == ((16 - inner[1]) // 2, inner[1])
    assert (fitted[fitted[..., 2] != 255] == 0).all()


@pytest.mark.parametrize("resize", ["stretch", "fit", "crop"])
def test_the_thinnest_image_is_an_image(resize):
    assert pixels_of(encode_array(np.full((1, 500), 255, np.uint8)), 8, 1, resize).max() == 255


def test_a_large_jpeg_is_decoded_small_without_a_visible_difference(monkeypatch):
    noise = Image.effect_noise((64, 64), 40).resize((800, 640), Image.Resampling.BICUBIC)
    content = encoded(Image.merge("RGB", (noise, noise.rotate(90).resize(noise.size), noise.rotate(180))), "JPEG")
    sizes = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: (sizes.append(image.size), load(image))[1])
    small = pixels_of(content, 64, 3).astype(int)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    whole = pixels_of(content, 64, 3).astype(int)
    assert sizes[0] == (200, 160)  # 1/4: the smallest that is at least twice the target
    assert sizes[-1] == (800, 640)
    assert abs(small - whole).max() <= 4
    assert abs(small - whole).mean() < 1


@pytest.mark.parametrize(
    ("mode", "gray"),
    [("L", True), ("1", True), ("LA", True), ("I;16", True), ("RGB", False), ("RGBA", False), ("P", False)],
)
def test_gray_is_told_by_the_header(mode, gray):
    assert is_gray(encoded(Image.new(mode, (8, 8)))) is gray


def bomb(width=60_000, height=None, color=2):
    """Return a PNG that claims so many pixels in a few hundred bytes; color: 2 for RGB, 6 for RGBA."""

    return png(struct.pack(">IIBBBBB", width, height or width, 8, color, 0, 0, 0), bytes(1000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-400], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1000], "truncated|broken|incomplete"),
        (bomb(), "decompression bomb"),
        (bomb(20_000), "20000 x 20000 pixels need 1.5 GiB of memory, more than 1: a decompression bomb"),
        (bomb(12_000, color=6), "12000 x 12000 pixels need 1.6 GiB"),  # three copies, to lay it over white
        (bomb(89_478_485, 1), "89478485 x 1 pixels: a side of more than 65,535"),
        (bomb(1, 89_478_485), "1 x 89478485 pixels: a side of more than 65,535"),
        (encoded(Image.new("L", (8, 65_536)), "PNG"), "8 x 65536 pixels: a side of more than 65,535"),
    ],
)
def test_a_broken_image_says_why(content, reason):
    with pytest.raises(BadImageError, match=reason):
        pixels_of(content, 8, 3)
