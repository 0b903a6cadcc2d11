"""Duplicates among images: equal ones by the digest of their pixels, similar ones by their perceptual hash.

Equal images are found by sorting, in N log N time. Similar ones are found by the sorted-neighborhood method (Hernandez
and Stolfo, SIGMOD 1995): the hashes are sorted by ROUNDS different choices of their bits, and each is compared with the
NEIGHBORS that follow it. That takes ROUNDS sorts, ROUNDS * NEIGHBORS * N comparisons and about 200 bytes of memory an
image. Among few images every similar pair is found; among many, a few of the pairs that differ most are missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MOST_BITS = 18  # largest Hamming distance, of 128 bits: benchmarks/duplicates.py counts what it finds
LEAST_ONES = 12  # a hash with fewer ones or fewer zeros is of an image without structure, such as a blank page
ROUNDS, NEIGHBORS = 32, 32
SAMPLE, CHUNK = 512, 1 << 16
NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Twins:
    """The duplicates of N images in each of 3 splits.

    rows: int64 (N, 3), the row number of another image of that split that is a duplicate, or -1.
    """

    rows: np.ndarray

    def counts(self, splits: np.ndarray) -> np.ndarray:
        """Return how many images of split a have a duplicate in split b: int64 (3, 3); splits: (N,), as 0, 1 or 2."""
        return np.stack([(self.rows[splits == split] >= 0).sum(axis=0) for split in range(3)])


def equal_images(digests: np.ndarray, splits: np.ndarray) -> Twins:
    """Find the images with equal pixels.

    digests: of the pixels, uint64 (N, 2); splits: the split of each image, (N,), as 0, 1 or 2, or -1 for one left out.
    """
    group = _groups(digests)
    return Twins(_others(_first_rows(group, splits), group, splits))


def similar_images(hashes: np.ndarray, splits: np.ndarray, equal: Twins, most_bits: int) -> Twins:
    """Find, for each image and split, the most similar image of that split; none where the split has an equal one.

    hashes: perceptual, uint64 (N, 2); splits: the split of each image, (N,), as 0, 1 or 2, or -1 for one left out;
    equal: what `equal_images` found; most_bits: the largest Hamming distance of similar images. Images without
    structure, such as blank pages, are similar to nothing.
    """
    structured = _structured(hashes) & (splits >= 0)
    group = _groups(hashes)
    firsts = _first_rows(group, np.where(structured, splits, -1))
    distinct = np.zeros((len(firsts), 2), np.uint64)
    distinct[group] = hashes
    best = np.full((len(firsts), 3), NONE)  # (Hamming distance << 40) + row number, so that the minimum is the nearest
    for order in _orders(distinct):
        ordered = distinct[order]
        for step in range(1, min(NEIGHBORS, len(order) - 1) + 1):
            bits = _bits_apart(ordered[step:], ordered[:-step])
            (near,) = np.nonzero(bits <= most_bits)
            one, other, apart = order[near], order[near + step], bits[near].astype(np.int64)[:, None] << 40
            for a, b in ((one, other), (other, one)):  # no row occurs twice in a, so no assignment overwrites another
                there = firsts[b, :, 0]
                best[a] = np.minimum(best[a], np.where(there >= 0, apart + there, NONE))
    rows = np.where(best == NONE, -1, best & ((1 << 40) - 1))[group]
    own = _others(firsts, group, splits)  # images of the same hash
    rows = np.where(own >= 0, own, rows)
    rows[~structured] = -1
    return Twins(np.where(equal.rows >= 0, -1, rows))


def bits_of_similar(hashes: np.ndarray, labels: np.ndarray) -> int:
    """Return the largest Hamming distance at which images of this data set count as similar; -1: none does.

    hashes: perceptual, uint64 (N, 2); labels: (N,). At most MOST_BITS. The distance is three robust standard deviations
    (1.4826 times the median absolute deviation) below the median distance from an image to its nearest neighbor, so
    that in data whose images resemble one another, such as digits, none count as similar. That rule also finds none
    where most images have a duplicate. So MOST_BITS is returned where unrelated images lie far apart (the median over
    images of the 5 % quantile of their distances is at least 2 * MOST_BITS; it is 50 for photos, 26 for digits) and at
    least nine in ten of the neighbors within MOST_BITS have the same label.
    """
    structured = _structured(hashes)
    hashes, labels = hashes[structured], labels[structured]
    if len(hashes) < 2:
        return -1
    sample = np.unique(np.linspace(0, len(hashes) - 1, SAMPLE).astype(np.int64))
    nearest, twentieth, same = np.zeros((3, len(sample)))
    for place, row in enumerate(sample):
        bits = _bits_apart(hashes, hashes[row])
        bits[row] = 255
        twin = bits.argmin()
        nearest[place], same[place] = bits[twin], labels[twin] == labels[row]
        twentieth[place] = np.searchsorted(np.bincount(bits).cumsum(), len(hashes) / 20)
    twins = nearest <= MOST_BITS
    if np.median(twentieth) >= 2 * MOST_BITS and twins.any() and same[twins].mean() >= 0.9:
        return MOST_BITS
    spread = 1.4826 * np.median(np.abs(nearest - np.median(nearest)))
    return max(-1, min(MOST_BITS, int(np.floor(np.median(nearest) - 3 * spread))))


def _structured(hashes: np.ndarray) -> np.ndarray:
    ones = np.bitwise_count(hashes).sum(axis=1)
    return (ones >= LEAST_ONES) & (ones <= 128 - LEAST_ONES)


def _bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the Hamming distances, uint8 (N,), of hashes (N, 2)."""
    bits = np.bitwise_count(one ^ other)
    return bits[:, 0] + bits[:, 1]


def _groups(keys: np.ndarray) -> np.ndarray:
    """Number the different keys, uint64 (N, 2), from 0; return each image's number (N,)."""
    return np.unique(keys[:, ::-1], axis=0, return_inverse=True)[1].ravel()


def _first_rows(group: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the row numbers of the first two images of each group in each split, int64 (groups, 3, 2), or -1."""
    groups = int(group.max(initial=-1)) + 1
    found = np.full((groups, 3, 2), -1)
    for split in range(3):
        (rows,) = np.nonzero(splits == split)
        for place in range(2):
            firsts, at = np.unique(group[rows], return_index=True)  # the first occurrence of each
            found[firsts, split, place] = rows[at]
            rows = np.delete(rows, at)
    return found


def _others(firsts: np.ndarray, group: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return, for each image and split, the first other image of its group, int64 (N, 3), or -1."""
    first, second = firsts[group, :, 0], firsts[group, :, 1]
    rows = np.where(first == np.arange(len(group))[:, None], second, first)
    rows[splits < 0] = -1
    return rows


def _orders(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield ROUNDS orders of the hashes (N, 2), each by a key of 64 other bits; the choices are fixed."""
    for number in range(ROUNDS):
        chosen = (np.arange(64) * (2 * number + 1) + 37 * number) % 128  # an odd step: no bit twice
        keys = [_key(hashes[start : start + CHUNK], chosen) for start in range(0, len(hashes), CHUNK)]
        yield np.argsort(np.concatenate(keys), kind="stable") if keys else np.zeros(0, np.int64)


def _key(hashes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)[:, chosen]
    return np.packbits(np.ascontiguousarray(bits), axis=1).view(">u8")[:, 0].astype(np.uint64)
