"""Images of 16 bits keep the bits that are in use; where nothing says which, small values are refused."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

from reprise.data.formats.packed import load_metadata
from reprise.data.formats.raw import RawImage, write_archive
from reprise.data.prepare.decode import BadImageError, decode
from reprise.data.prepare.prepare import preprocess
from reprise.data.prepare.report import write_report
from reprise.runtime.errors import UserError
from tests.conftest import data_params
from tests.data.prepare.test_decode import encoded, png


def stored(values, photometric=1, bits=16, order="<"):
    """Return a TIFF of one row of gray pixels with these numbers; photometric 0: the largest is black."""
    raw = np.array(values, f"{order}u2").tobytes()
    if bits == 12:  # two pixels in three bytes
        raw = bytes.fromhex("".join(f"{value:03x}" for value in values))
    tags = [
        (256, len(values)),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (279, len(raw)),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(raw))
    return header + raw + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def gray_png(values):
    return encoded(Image.fromarray(np.array([values], np.uint16)), "PNG")


def deep_color_png(*values):
    """Return a PNG of one row of RGB pixels with 16 bits each."""
    row = b"\0" + np.array(values, ">u2").tobytes()
    return png(struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0), row)


@pytest.mark.parametrize(
    ("content", "depth", "values", "peak"),
    [
        (gray_png([0, 0x7FFF, 0x8000, 0xFFFF]), 16, [0, 127, 128, 255], 0xFFFF),
        (gray_png([0, 1, 128, 255]), 8, [0, 1, 128, 255], 255),
        (gray_png([0, 0x7FF, 0x800, 0xFFF]), 12, [0, 127, 128, 255], 0xFFF),
        (gray_png([0, 0x1FFF, 0x2000, 0x3FFF]), 14, [0, 127, 128, 255], 0x3FFF),
        (stored([0, 0x7FF, 0x800, 0xFFF]), 12, [0, 127, 128, 255], 0xFFF),
        (stored([0, 0x7FF, 0x800, 0xFFF], order=">"), 12, [0, 127, 128, 255], 0xFFF),
        (stored([0, 0x7FF, 0x800, 0xFFF], bits=12), 16, [0, 127, 128, 255], 0),  # it states its bits
        (stored([0, 0x7FF, 0x800, 0xFFF], bits=12), 14, [0, 127, 128, 255], 0),
        (stored([0, 0x7FFF, 0x8000, 0xFFFF], photometric=0), 16, [255, 128, 127, 0], 0xFFFF),
        (stored([0, 0x7FF, 0x800, 0xFFF], photometric=0), 12, [255, 128, 127, 0], 0xFFF),
        (b"P5 4 1 4095\n" + np.array([0, 0x7FF, 0x800, 0xFFF], ">u2").tobytes(), 16, [0, 127, 128, 255], 0),
        (b"P5 4 1 4095\n" + np.array([0, 0x7FF, 0x800, 0xFFF], ">u2").tobytes(), 12, [0, 127, 128, 255], 0),
        (b"P5 2 1 65535\n" + np.array([0, 0xFFF], ">u2").tobytes(), 12, [0, 255], 0xFFF),
        (deep_color_png([0, 0, 0], [0x7FFF] * 3, [0xFFFF] * 3), 16, [0, 127, 255], 0xFFFF),
        (deep_color_png([0, 0, 0], [255] * 3), 16, [0, 0], 255),
        (b"P6 1 1 65535\n" + bytes([0, 255] * 3), 16, [1], 511),  # 0.996, rounded
        (encoded(Image.new("L", (1, 1), 9)), 12, [9], 0),
    ],
)
def test_images_of_16_bits_keep_the_upper_8_of_those_in_use_and_tell_their_largest_value(content, depth, values, peak):
    decoded = decode(content, len(values), 1, depth=depth)
    assert decoded.pixels[0, :, 0].tolist() == values
    assert decoded.peak == peak


@pytest.mark.parametrize(
    ("content", "depth", "reason"),
    [
        (gray_png([0, 256]), 8, "pixels outside 0 to 255"),
        (stored([4096], photometric=0), 12, "pixels outside 0 to 4,095; save it with 8 or 16 bits, or see data.depth"),
        (deep_color_png([255] * 3), 8, "16 bits in color, where data.depth = 8 is for gray; save it with 8 bits"),
    ],
)
def test_values_beyond_the_stated_depth_are_refused(content, depth, reason):
    with pytest.raises(BadImageError, match=reason):
        decode(content, 8, 1, depth=depth)


def prepared(folder, tops, **options):
    """Prepare gray images of 16 bits with values from 0 to these; return the metadata and the report."""
    folder.mkdir()
    random = np.random.default_rng(0)
    images = []
    for number, top in enumerate(tops):
        pixels = random.integers(0, top + 1, (8, 8)).astype(np.uint16)
        pixels[0, 0] = top
        images.append(RawImage("unsplit", "ab"[number % 2], f"{number}.png", encoded(Image.fromarray(pixels), "PNG")))
    write_archive(folder / "raw", "folder", ["a", "b"], images)
    options = {"image_size": 8, "val_fraction": 0.2, "test_fraction": 0.3} | options
    metadata, findings = preprocess(folder / "raw", folder / "out", data_params(**options))
    write_report(findings, folder / "report")
    return metadata, (folder / "report/report.md").read_text()


@pytest.mark.parametrize(
    ("tops", "said"),
    [
        ([255] * 20, r"20 images of 16 bits, values up to 255, .* data\.depth: 8 \(white is 255\), or 16 if"),
        ([4095] * 20, r"values up to 4,095, taken as 16 bits: half .* none above 4,095 .* data\.depth: 12 \("),
        ([1000] * 11 + [65535] * 9, r"values up to 65,535, .* none above 1,000 and .* data\.depth: 12 "),  # burned in
    ],
)
def test_small_values_are_refused_unless_the_depth_is_stated(tmp_path, tops, said):
    with pytest.raises(UserError, match=said):
        prepared(tmp_path / "auto", tops)
    metadata, report = prepared(tmp_path / "stated", tops, depth=16)
    assert metadata.depth == load_metadata(tmp_path / "stated/out").depth == 16
    assert f"- 20 images of 16 bits, values up to {max(tops):,}, taken as 16 bits" in report


@pytest.mark.parametrize(
    ("tops", "said"),
    [
        ([1000] * 9 + [65535] * 11, "20 images of 16 bits, values up to 65,535, taken as 16 bits; 9 of them have none"),
        ([16383] * 20, "20 images of 16 bits, values up to 16,383, taken as 16 bits; 0 of them have none above 4,095"),
        ([65535] * 20, None),
    ],
)
def test_a_range_that_is_hardly_used_is_told(tmp_path, tops, said, capsys):
    prepared(tmp_path / "auto", tops)
    assert (said or "16 bits") in capsys.readouterr().err or not said


def test_the_depth_is_recorded_where_it_was_chosen_and_nowhere_else(tmp_path):
    prepared(tmp_path / "auto", [65535] * 20)
    assert "depth" not in json.loads((tmp_path / "auto/out/metadata.json").read_text())
    metadata, _ = prepared(tmp_path / "twelve", [4095] * 20, depth=12)
    assert metadata.depth == json.loads((tmp_path / "twelve/out/metadata.json").read_text())["depth"] == 12
    images = np.load(tmp_path / "twelve/out/train_images.npy")
    assert (images[:, 0, 0] == 255).all()
    assert images.min() < 8
