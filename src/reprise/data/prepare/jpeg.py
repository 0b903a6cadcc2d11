"""Damage in JPEGs that libjpeg passes over in silence, filling in gray; a sound image is still decoded only once.

A baseline image that was cut or overwritten has too few bits for its pixels, or too many: it is decoded without its
end marker, so that Pillow asks for more or, on the other hand, leaves its last bytes unread. A progressive one that was
cut lacks bits of coefficients: then bytes put before its end marker change its pixels. Not found: a progressive image
that was cut in its last scan, which refines the last bit, or overwritten; and other bytes for as many pixels.
"""

import io
import re
from collections.abc import Iterator

from PIL import Image

MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # all but those that stand within a scan
FRAMES = {0xC0, 0xC1, 0xC2}  # with Huffman codes; the last one is progressive
PROGRESSIVE, HUFFMAN_TABLES, END_OF_IMAGE, START_OF_SCAN = 0xC2, 0xC4, 0xD9, 0xDA
ONES = b"\xff\x00" * 16  # bits of 1, which are no Huffman code: read ahead, they make at most two blocks of pixels
FILLING = bytes(range(1, 64))  # some bits
SPARE = 16  # bytes; some cameras write a few that belong to no pixel
ZEROS = bytes(128)  # longer than any block of which all coefficients are alike and not zero


def baseline_end(encoded: bytes) -> int | None:
    """Return where the data of a baseline image of one scan end; None: any other image, which needs no further check.

    Raises ValueError for overwritten or missing data.
    """
    kind = components = scans = 0
    for marker, start, begin, end in _segments(encoded):
        if marker == START_OF_SCAN:
            scans, in_scan, first, last = scans + 1, encoded[start], begin, end
        elif marker in FRAMES:
            kind, components = marker, encoded[start + 5]
    if not kind or not scans:
        return None
    single = kind != PROGRESSIVE and scans == 1 and in_scan == components
    if single and encoded.find(ZEROS, first, last) < 0:
        return last
    incomplete = _incomplete(encoded)
    if single:
        return last
    if (kind != PROGRESSIVE or incomplete) and _pixels(encoded[:last]) != _pixels(encoded[:last] + FILLING):
        raise ValueError("image file is truncated")
    return None


def _incomplete(encoded: bytes) -> bool:
    """Return whether some bits of coefficients are in no scan. Raises ValueError for overwritten data."""
    left_out: dict[int, bytearray] = {}  # of each component and coefficient, how many
    of_zeros: dict[int, int] = {}  # of each Huffman table, the symbol whose code is all zeros
    for marker, start, begin, end in _segments(encoded):
        content = encoded[start:begin]
        if marker in FRAMES:
            left_out = {component: bytearray(b"\xff" * 64) for component in content[6::3]}
        elif marker == HUFFMAN_TABLES:
            while content:
                of_zeros[content[0]] = content[17]
                content = content[17 + sum(content[1:17]) :]
        elif marker == START_OF_SCAN:
            header = 2 * content[0] + 1
            first, last, bits = content[header : header + 3]
            for component, tables in zip(content[1:header:2], content[2:header:2], strict=True):
                left_out[component][first : last + 1] = bytes([bits % 16]) * (last + 1 - first)
                # no encoder writes many zeros where they are a coefficient that is not zero, again and again
                coefficient = last and bits < 16 and of_zeros.get(16 + tables % 16, 0) % 16
                if coefficient and encoded.find(ZEROS, begin, end) >= 0:
                    raise ValueError("damaged: zeros in place of some of its data")
    return any(map(any, left_out.values()))


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the segments up to the end of the image, as long as another marker follows.

    Each with its marker, where its content begins, where that ends and its data begin, and where these end.
    """
    found = MARKER.search(encoded, 2)
    while found and encoded[found.end() - 1] != END_OF_IMAGE:
        start = found.end() + 2
        begin = start - 2 + int.from_bytes(encoded[start - 2 : start])
        found, marker = MARKER.search(encoded, begin), encoded[start - 3]
        if found:
            yield marker, start, begin, found.start()


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data + b"\xff\xd9"), formats=["JPEG"]) as image:
        return image.tobytes()
