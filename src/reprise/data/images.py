"""Encoded bytes in, uint8 pixels out; what is wrong with an image is said in a few words, never repaired silently."""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}
MAX_PIXELS = 89_478_485  # Pillow's own line: 256 MiB of RGB


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


def is_grey(encoded: bytes) -> bool:
    """Read only the header; return whether the image has no colour. Raises BadImageError."""
    return _open(encoded).mode in GREY_MODES


def decode(encoded: bytes, image_size: int, channels: int) -> np.ndarray:
    """Decode, turn upright, convert and stretch to (image_size, image_size, channels) uint8. Raises BadImageError.

    Transparent images are laid over white; 16-bit grey keeps its upper 8 bits. Downscaling is antialiased.
    """
    image = _open(encoded)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        image = _flatten(image).convert("L" if channels == 1 else "RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever hostile bytes provoke
        raise BadImageError(_reason(error)) from None
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image_size, image_size, channels)


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, by name
            image: Any = Image.open(io.BytesIO(encoded))
    except Image.UnidentifiedImageError:
        raise BadImageError("not an image, or its beginning is damaged") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels: a decompression bomb?") from None
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?")
    return image


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba)
    return image


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
