"""A JPEG that lacks pixels is told from one that merely looks like it, wherever its bytes give it away."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from reprise.data.prepare.decode import BadImageError, decode

END = b"\xff\xd9"
COLORS = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
PHOTO = Image.fromarray(COLORS).resize((200, 160), Image.Resampling.BICUBIC)
KINDS = {
    "usual": {},
    "fine": {"quality": 95, "subsampling": 0},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
}


def jpeg(image=PHOTO, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def place_of_data(content):
    """Return from where to where the data of the last scan lie."""
    header = content.rfind(b"\xff\xda") + 2
    return header + int.from_bytes(content[header : header + 2]), content.rfind(END)


def damage(content, size=32):
    """Return what is said of an image, "" of a sound one."""
    try:
        return decode(content, size, 3).complaint
    except BadImageError as error:
        return str(error)


@pytest.mark.parametrize("size", [32, 200], ids=["drafted", "whole"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_anywhere_is_named_though_it_ends_with_an_end_marker(kind, mode, size):
    whole = jpeg(PHOTO.convert(mode), **KINDS[kind])
    assert damage(whole, size) == ""
    begin, end = place_of_data(whole)
    if kind == "progressive":  # up to the last scan, of bits too small to see
        begin, end = whole.find(b"\xff\xda"), begin
    for share in (0.1, 0.5, 0.9):
        cut = whole[: begin + int(share * (end - begin))] + END
        assert "truncated" in damage(cut, size)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive"])
def test_overwritten_data_are_named(kind):
    whole = jpeg(**KINDS[kind])
    begin, end = place_of_data(whole)
    found = 0
    for start in range(begin + 20, end - 220, 97):
        found += damage(whole[:start] + bytes(200) + whole[start + 200 :]) != ""
    assert found / len(range(begin + 20, end - 220, 97)) >= (1 if kind in ("usual", "fine") else 0.8)


def without_last_scan(content):
    return content[: content.rfind(b"\xff\xda")] + END


def with_exif_thumbnail():
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + struct.pack(">HI", 0, 14) + jpeg(PHOTO.resize((16, 16)))
    content = jpeg()
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def multi_picture():
    buffer = io.BytesIO()
    PHOTO.save(buffer, "MPO", save_all=True, append_images=[PHOTO.rotate(90)])
    return buffer.getvalue()


SOUND = {
    "followed by another": jpeg() + jpeg(),
    "followed by text": jpeg() + b"SEFT" * 100,
    "multi-picture": multi_picture(),
    "with a thumbnail": with_exif_thumbnail(),
    "filled up with ones": jpeg()[:-2] + b"\xff" * 40 + END,
    "filled up with zeros": jpeg()[:-2] + bytes(40) + END,
    "a few bytes too many": jpeg()[:-2] + b"\x12\x34\x56\x78" + END,
    "a comment before the end": jpeg()[:-2] + b"\xff\xfe\0\x06text" + END,
    "gray to the last pixel": jpeg(Image.new("RGB", (200, 160), (128,) * 3)),
    "whose codes are zeros": jpeg(Image.new("L", (1000, 1000), 7), optimize=True),
    "progressive and flat": jpeg(Image.new("L", (2000, 2000), 7), progressive=True),
    "one pixel": jpeg(Image.new("L", (1, 1), 200)),
    "progressive, kept short": without_last_scan(without_last_scan(jpeg(progressive=True))),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_image_is_read_with_the_pixels_that_pillow_finds(name):
    decoded = decode(SOUND[name], 200, 3)
    assert decoded.complaint == ""
    with Image.open(io.BytesIO(SOUND[name])) as image:
        plain = np.asarray(image.convert("RGB").resize((200, 200), Image.Resampling.BILINEAR))
    assert abs(decoded.pixels.astype(int) - plain).max() <= (0 if max(decoded.size) < 400 else 1)


@pytest.mark.parametrize("quality", [1, 30, 75, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 7, 16, 33])
def test_no_sound_image_is_refused_whatever_its_content(side, subsampling, quality):
    random = np.random.default_rng(quality)
    noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    for pixels in (noise, noise // 16, noise[:1, :1] + np.zeros_like(noise)):
        for kind in KINDS.values():
            options = {"quality": quality, "subsampling": subsampling} | kind
            assert damage(jpeg(Image.fromarray(pixels), **options)) == ""


def test_one_component_to_a_scan():
    """A baseline image of three components, each the same gray image in a scan of its own; and cut in two of them."""
    gray = jpeg(PHOTO.convert("L"))
    frame, scan = gray.find(b"\xff\xc0"), gray.find(b"\xff\xda")
    data = gray[place_of_data(gray)[0] : -2]
    header = gray[frame + 4 : frame + 9] + b"\x03" + b"".join(bytes([n, 0x11, 0]) for n in (1, 2, 3))
    begin = gray[:frame] + b"\xff\xc0" + struct.pack(">H", len(header) + 2) + header + gray[frame + 13 : scan]
    scans = [b"\xff\xda\0\x08\x01" + bytes([n, 0]) + b"\0\x3f\0" + data for n in (1, 2, 3)]
    whole = begin + b"".join(scans)
    assert damage(whole + END) == ""
    assert "truncated" in damage(whole[: -len(data) // 2] + END)
    assert "truncated" in damage(begin + scans[0] + scans[1][: -len(data) // 2] + END)
