"""Signatures of packed images, 44 bytes each, by which equal and similar ones are found without their pixels."""

import hashlib

import numpy as np

# width, height: of the file's image, upright. peak: see `Decoded`. digest: of the packed pixels. hash: perceptual, see
# `difference_hash`
SIGNATURE = np.dtype([("width", "<i4"), ("height", "<i4"), ("peak", "<i4"), ("digest", "<u8", 2), ("hash", "<u8", 2)])
GRID = 8


def signatures(images: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the SIGNATURE (N,) of packed images (N, H, W, C) uint8; sizes: (N, 3), width, height and peak."""
    found = np.zeros(len(images), SIGNATURE)
    found["width"], found["height"], found["peak"] = sizes.T
    found["hash"] = difference_hash(images)
    for row, pixels in zip(found, images, strict=True):
        row["digest"] = np.frombuffer(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), "<u8")
    return found


def difference_hash(images: np.ndarray) -> np.ndarray:
    """Return the difference hash, uint64 (N, 2), of images (N, H, W, C) uint8.

    The gray image is averaged over 8 x 9 cells; 64 bits say whether each cell is brighter than its left neighbor, and
    64 more, over 9 x 8 cells, than its upper one (dHash, N. Krawetz, 2013, in both directions). Compared in integers,
    so the bits are the same on every machine; contrast and brightness do not matter, compression little.
    """
    gray = np.einsum("nhwc->nhw", images, dtype=np.int64)  # images.sum(axis=3), in a third of its time
    bits = [_brighter(gray), _brighter(gray.transpose(0, 2, 1))]
    return np.packbits(np.concatenate(bits, axis=1), axis=1).view("<u8")


def _brighter(gray: np.ndarray) -> np.ndarray:
    """Return bool (N, 64): which of 8 x 9 cells of gray images (N, H, W) is brighter than the one to its left."""
    tops = np.arange(GRID) * gray.shape[1] // GRID
    edges = np.arange(GRID + 2) * gray.shape[2] // (GRID + 1)
    widths = np.maximum(np.diff(edges), 1)
    cells = np.add.reduceat(np.add.reduceat(gray, tops, axis=1), edges[:-1], axis=2)
    return (cells[:, :, 1:] * widths[:-1] > cells[:, :, :-1] * widths[1:]).reshape(len(gray), -1)
