"""Decoding: encoded bytes to uint8 pixels; a bad image raises with the reason and is never repaired silently.

The first frame of an animation and the first page of a TIFF count. Color profiles are not applied.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from reprise.data.formats.images import READ, misnamed
from reprise.params.schema import Resize
from reprise.runtime.errors import reason

FORMATS = tuple(READ)  # no others: some start foreign programs
GRAY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 89_478_485  # Pillow's own line: 256 MiB of RGB


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


def is_gray(encoded: bytes) -> bool:
    """Read only the header; return whether the image has no color; a palette counts as color. Raises BadImageError."""
    return _open(encoded).mode in GRAY_MODES


def decode(
    encoded: bytes, image_size: int, channels: int, resize: Resize = "stretch"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode, turn upright, convert and resize to (image_size, image_size, channels) uint8; return it and its size.

    Transparent images are laid over white; 16-bit gray keeps its upper 8 bits. Downscaling is antialiased (bilinear).
    stretch: sides as they come; fit: the whole image, centered on black; crop: the largest square in the middle.
    A JPEG many times too large is decoded at 1/2, 1/4 or 1/8, never below twice the target: several times faster.
    The size is (width, height) of the upright image in the file. Raises BadImageError.
    """
    image = _open(encoded)
    width, height = image.size
    with _refused():
        image.draft(None, (2 * image_size, 2 * image_size))
        image.load()
        if image.getexif().get(ORIENTATION) in (5, 6, 7, 8):  # on its side
            width, height = height, width
        image = _flatten(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(_square(image, image_size, resize), dtype=np.uint8)
    return pixels.reshape(image_size, image_size, channels), (width, height)


@contextmanager
def _refused() -> Iterator[None]:
    """Turn what hostile bytes provoke in Pillow's plugins, which may be anything, into a BadImageError."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image, or its beginning is damaged") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels: a decompression bomb?") from None
    except (MemoryError, BadImageError):
        raise
    except Exception as error:
        raise BadImageError(reason(error)) from None


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImageError("empty file")
    if said := misnamed(encoded):
        raise BadImageError(said)
    with _refused(), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, by name
        image: Any = Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?")
    return image


def _flatten(image: Image.Image) -> Image.Image:
    """Return the image in 8 bits and without transparency."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range nothing states; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise BadImageError("pixels outside 0 to 65,535; save it with 8 or 16 bits")
        pixels[pixels == image.info.get("transparency", -1)] = 65535
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba)
    return image


def _square(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """Return a square of this size; an image of that size is returned as it is."""
    if image.size == (size, size):
        return image
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    if resize == "fit":
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        square = Image.new(image.mode, (size, size))
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        square.paste(whole, ((size - width) // 2, (size - height) // 2))
        return square
    return image.resize((size, size), Image.Resampling.BILINEAR)
