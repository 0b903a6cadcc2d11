"""What a file is follows from its first bytes, and the decoder reads what they promise."""

import io

import pytest
from PIL import Image

from reprise.data.formats.images import IMAGE_SUFFIXES, READ, kind_of, misnamed


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in READ if kind != "TGA"])
def test_what_pillow_writes_is_what_it_is(kind):
    assert kind_of(encoded(kind)[:512]) == kind
    assert misnamed(encoded(kind)) == ""
    assert Image.open(io.BytesIO(encoded(kind)), formats=list(READ)).format == kind


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_of_an_image_is_of_a_format_that_is_read(suffix):
    assert Image.registered_extensions()[suffix] in {*READ, "MPO"}


def test_a_multi_picture_and_an_animated_png_are_read_by_their_first_picture():
    more = {"save_all": True, "append_images": [Image.new("RGB", (20, 10), "blue")]}
    for kind, known in (("MPO", "JPEG"), ("PNG", "PNG")):
        content = encoded(kind, **more)
        assert kind_of(content) == known
        assert Image.open(io.BytesIO(content), formats=list(READ)).convert("RGB").getpixel((0, 0))[0] > 200


def box(brand, *others):
    return b"\0\0\0\x20ftyp" + brand + b"\0\0\0\0" + b"".join(others)


OTHERS = {
    "HEIC": [box(b"heic", b"mif1heic"), box(b"mif1", b"mif1heic"), box(b"hevc")],
    "JPEG 2000": [encoded("JPEG2000"), b"\xff\x4f\xff\x51\0"],
    "JPEG XL": [b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "DICOM": [bytes(128) + b"DICM\x02\0"],
    "Photoshop": [b"8BPS\0\x01"],
    "camera raw": [box(b"crx "), b"FUJIFILMCCD-RAW 0201"],
    "SVG": [b"<svg xmlns=", b'<?xml version="1.0"?>\n<svg>'],
    "HTML": [b"<!DOCTYPE html><html>404</html>", b"\xef\xbb\xbf \r\n<html>"],
    "Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"],
    "PDF": [b"%PDF-1.7"],
    "video": [box(b"isom"), b"RIFF\0\0\0\0AVI LIST", b"\x1aE\xdf\xa3"],
    "archive": [b"PK\3\4\0", b"\x1f\x8b\x08", b"7z\xbc\xaf'\x1c", bytes(257) + b"ustar"],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_called_an_image_and_is_none_is_named(kind):
    for content in OTHERS[kind]:
        assert kind_of(content) == kind
        assert kind in misnamed(content) and "\n" not in misnamed(content)


def test_the_way_out_is_said():
    assert misnamed(OTHERS["HEIC"][0]).endswith("; convert it, e.g. to JPEG")
    assert misnamed(OTHERS["Git LFS pointer"][0]).endswith("; run `git lfs pull`")
    assert misnamed(OTHERS["PDF"][0]) == "not an image, but PDF by its content"


def test_avif_behind_the_brand_of_heic_and_texts_are_told_apart():
    assert kind_of(box(b"mif1", b"mif1", b"avif", b"miaf")) == "AVIF"
    for text in (b"BMW 320", b"P1 is a text", b"Preface", b"MMXX", b"IIx", b"RIFF", b"", b"\0" * 512, b"GIF of"):
        assert kind_of(text) == ""
