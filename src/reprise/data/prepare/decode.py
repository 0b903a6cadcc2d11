"""Decoding: encoded bytes to uint8 pixels; a bad image raises with the reason and is never repaired silently.

The first frame of an animation and the first page of a TIFF count. Color profiles are not applied.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from reprise.data.formats.images import READ, misnamed
from reprise.data.prepare.jpeg import ONES, SPARE, baseline_end
from reprise.params.schema import Resize
from reprise.runtime.errors import reason

FORMATS = tuple(READ)  # no others: some start foreign programs
GRAY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}
ORIENTATION = 0x0112  # the EXIF tag
PHOTOMETRIC = 262  # the TIFF tag; 0: the largest number is black
LONGEST_SIDE = 65_535  # pixels, as in JPEG and GIF
MOST_BYTES = 1 << 30  # of memory to decode an image: 268 million pixels, 89 with transparency
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # so that one long text or color profile may stand
logging.getLogger("PIL").addHandler(logging.NullHandler())  # its errors are raised, too


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


class Decoded(NamedTuple):
    """A decoded image.

    pixels: uint8 (image_size, image_size, channels). size: (width, height) of the upright image in the file. peak: the
    largest value of a file of 16 bits that does not say how many of them it uses, otherwise 0. complaint: what the
    libraries said of a file that they could read, otherwise "".
    """

    pixels: np.ndarray
    size: tuple[int, int]
    peak: int
    complaint: str


def is_gray(encoded: bytes) -> bool:
    """Read only the header; return whether the image has no color; a palette counts as color. Raises BadImageError."""
    with _listening():
        return _open(encoded).mode in GRAY_MODES


def decode(encoded: bytes, image_size: int, channels: int, resize: Resize = "stretch", depth: int = 16) -> Decoded:
    """Decode, turn upright, convert and resize to (image_size, image_size, channels).

    depth: the bits in use of images of 16 bits, of which the upper 8 are kept; a TIFF of 12 bits, or a PGM with another
    maximum than 65,535, states its own. Transparent images are laid over white. Downscaling is antialiased (bilinear).
    stretch: sides as they come; fit: the whole image, centered on black; crop: the largest square in the middle.
    A JPEG many times too large is decoded at 1/2, 1/4 or 1/8, never below twice the target: several times faster.
    Raises BadImageError.
    """
    with _listening() as complaints:
        image = _open(encoded)
        width, height = image.size
        image.draft(None, (2 * image_size, 2 * image_size))
        _check_memory(image, width, height)
        tile = image.tile[0] if image.format in ("PNG", "TIFF", "PPM") else None
        stored = str(tile.args) if tile else ""  # how Pillow unpacks the pixels
        if end := baseline_end(encoded) if image.format in ("JPEG", "MPO") else None:
            image.fp = stream = io.BytesIO(encoded[:end] + ONES)
            image.decodermaxblock = edge = max(1, end - SPARE)
        with _silenced() if tile and tile.codec_name == "libtiff" else nullcontext():
            image.load()
        if end and stream.tell() <= edge and len(set(encoded[edge:end])) > 1:  # equal bytes may be padding
            raise BadImageError("damaged: it holds more data than its pixels need")
        orientation = image.getexif().get(ORIENTATION)
        if orientation in (5, 6, 7, 8):  # on its side
            width, height = height, width
        if orientation in range(2, 9):
            ImageOps.exif_transpose(image, in_place=True)
        image, peak = _shallow(image, stored, depth)
        image = _flatten(image, "L" if channels == 1 else "RGB")
        pixels = np.asarray(_square(image, image_size, resize), dtype=np.uint8)
    complaint = " ".join(str(complaints[0].message).split()) if complaints else ""
    return Decoded(pixels.reshape(image_size, image_size, channels), (width, height), peak, complaint)


@contextmanager
def _listening() -> Iterator[list[warnings.WarningMessage]]:
    """Yield the libraries' warnings; turn what hostile bytes provoke, which may be anything, into a BadImageError."""
    pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `_check_memory` has another
    try:
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as complaints:
            yield complaints
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image, or its beginning is damaged") from None
    except (MemoryError, BadImageError):
        raise
    except Exception as error:
        raise BadImageError(reason(error)) from None
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_limit


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep off the screen what a library in C prints; it fails as well."""
    screen = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def _open(encoded: bytes) -> Any:
    if not encoded:
        raise BadImageError("empty file")
    if said := misnamed(encoded):
        raise BadImageError(said)
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _check_memory(image: Image.Image, width: int, height: int) -> None:
    """Raise BadImageError if decoding would take too much; width, height: of the file, which may be decoded smaller."""
    if max(width, height) > LONGEST_SIDE:
        raise BadImageError(f"{width} x {height} pixels: a side of more than {LONGEST_SIDE:,}")
    copies = 3 if _transparent(image) or image.mode.startswith("I") else 1
    needed = 4 * image.width * image.height * copies
    if "progressive" in image.info:  # all coefficients are kept until the last scan
        needed += 2 * width * height * len(image.getbands())
    if needed > MOST_BYTES:
        much = f"{width} x {height} pixels need {needed / 2**30:.1f} GiB of memory, more than {MOST_BYTES >> 30}"
        raise BadImageError(f"{much}: a decompression bomb? if not, save it smaller")


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _shallow(image: Any, stored: str, depth: int) -> tuple[Image.Image, int]:
    """Return an image of more than 8 bits in 8, any other as it is, and its peak, see `Decoded`."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range nothing states; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        stated = 12 if ";12" in stored else 16 if image.format == "PPM" and ";16" not in stored else None
        most = (1 << (stated or depth)) - 1
        pixels = np.asarray(image)
        peak = int(pixels.max())
        if pixels.min() < 0 or peak > most:
            raise BadImageError(f"pixels outside 0 to {most:,}; save it with 8 or 16 bits, or see data.depth")
        if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0:
            pixels = most - pixels
        if "transparency" in image.info:
            pixels = np.where(pixels == image.info["transparency"], most, pixels)
        return Image.fromarray((pixels >> (most.bit_length() - 8)).astype(np.uint8)), 0 if stated else peak
    if ";16" not in stored and (image.format != "PPM" or "65535" not in stored):
        return image, 0
    if depth < 16:  # Pillow reads the upper 8 bits alone
        raise BadImageError(f"16 bits in color, where data.depth = {depth} is for gray; save it with 8 bits")
    extrema = zip(image.getbands(), image.getextrema(), strict=True)
    return image, max(high for band, (_, high) in extrema if band != "A") << 8 | 255


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in this mode, without transparency."""
    if _transparent(image):
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):
            warnings.warn("every pixel is transparent", stacklevel=2)
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def _square(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """Return a square of this size; an image of that size is returned as it is."""
    if image.size == (size, size):
        return image
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size) if resize == "fit" else (size, size)
    whole, square = image.resize((width, height), Image.Resampling.BILINEAR), Image.new(image.mode, (size, size))
    square.paste(whole, ((size - width) // 2, (size - height) // 2))
    return square
