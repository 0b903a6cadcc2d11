"""Checks of the prepared images: sizes, missing classes, duplicates, leaks, equal images under two labels.

A leak is an image of train or val that is in a later split (in the order train, val, test) as well: with the same
pixels once prepared, or similar by its perceptual hash. The later split then measures memorization, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from reprise.data.formats.packed import SPLITS, Split
from reprise.data.formats.raw import RawArchive, image_id, shown
from reprise.data.prepare.corrections import CORRECTIONS, Corrected
from reprise.data.prepare.duplicates import Twins, bits_of_similar, equal_images, similar_images
from reprise.params.schema import PrepareParams
from reprise.runtime.errors import UserError, first

NAMED, LISTED = 3, 50  # leaks and bad images in an error; the rest are counted


@dataclass(frozen=True)
class Findings:
    """Findings on a raw archive's N images; every array is in the archive's order.

    splits: 0, 1, 2 as in SPLITS, or -1 for an image that cannot be read. twins: by kind, before any leak was dropped.
    similar_bits: in how many of 128 similar images may differ, see `bits_of_similar`. peaks: see `Decoded`; depth: the
    bits in use of images of 16. dropped: {row: reason}. complaints: {row: what the libraries said} of images left.
    missed: see `missed_shares`. corrected: what data/corrections.csv does; corrections: its counts.
    """

    archive: RawArchive
    ids: list[str]
    splits: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    similar_bits: int
    twins: dict[str, Twins]
    peaks: np.ndarray
    depth: int
    corrected: Corrected
    corrections: dict[str, Any]
    dropped: dict[int, str] = field(default_factory=dict)
    complaints: dict[int, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def leaks(self) -> dict[int, int]:
        """Return {row: row of its twin in a later split}; equal goes before similar, test before val."""
        found = np.full(len(self.splits), -1)
        for twins in self.twins.values():
            for split, later in ((0, 2), (0, 1), (1, 2)):
                found = np.where((found < 0) & (self.splits == split), twins.rows[:, later], found)
        return {int(row): int(found[row]) for row in np.flatnonzero(found >= 0)}

    def relation(self, row: int, twin: int) -> str:
        """Return the relation of an image to its twin, in words."""
        equal = bool((self.twins["equal"].rows[row] == twin).any())
        return f"{'same pixels as' if equal else 'similar to'} {shown(self.ids[twin])} ({SPLITS[self.splits[twin]]})"

    def two_labels(self, kind: str) -> dict[int, int]:
        """Return {row: row of a twin} of images that have a twin of another class."""
        rows = self.twins[kind].rows
        other = (rows >= 0) & (self.labels[rows] != self.labels[:, None])
        return {int(row): int(rows[row, other[row].argmax()]) for row in np.flatnonzero(other.any(axis=1))}

    def counts(self) -> np.ndarray:
        """Return the images that are left per class and split, int64 (classes, 3)."""
        splits = self.splits.copy()
        splits[list(self.dropped)] = -1
        classes = len(self.archive.source.classes)
        return np.stack([np.bincount(self.labels[splits == split], minlength=classes) for split in range(3)], axis=1)

    def missing(self) -> list[tuple[str, str]]:
        """Return class and split wherever a split has no image of a class."""
        return [(self.archive.source.classes[label], SPLITS[split]) for label, split in np.argwhere(self.counts() == 0)]

    def metrics(self) -> dict[str, Any]:
        """Return the numbers of metrics/data.json, in a fixed order.

        images, imbalance (most over fewest images of a class in train), missing: of what is left. width, height, twins:
        of all images that can be read. test_in_train: images of test with a twin in train; test: those with a twin in
        test itself.
        """
        counts, leaks = self.counts(), sum(int(self.splits[row] >= 0) for row in self.dropped)
        train = counts[:, 0]
        return {
            "images": dict(zip(SPLITS, counts.sum(axis=0).tolist(), strict=True)),
            "classes": len(counts),
            "imbalance": round(float(train.max() / max(train.min(), 1)), 3),
            "missing": len(self.missing()),
            "width": _extremes(self.sizes[self.splits >= 0, 0]),
            "height": _extremes(self.sizes[self.splits >= 0, 1]),
            "dropped": {"corrupt": len(self.dropped) - leaks - len(self.corrected.dropped), "leaks": leaks},
            "corrections": self.corrections,
            "two_labels": {kind: len(self.two_labels(kind)) for kind in self.twins},
            **{kind: self.shared(kind) for kind in self.twins},
        }

    def shared(self, kind: str) -> dict[str, int]:
        """Return how many images of a split have a twin in it, then how many of a later one in an earlier one."""
        table = self.twins[kind].counts(self.splits)
        within = {name: int(table[split, split]) for split, name in enumerate(SPLITS)}
        across = {f"{SPLITS[b]}_in_{SPLITS[a]}": int(table[b, a]) for a, b in ((0, 1), (0, 2), (1, 2))}
        return within | across

    def warnings(self) -> list[str]:
        """Return what a person should know before training, one line each."""
        lines = []
        if leaks := [pair for pair in self.leaks().items() if pair[0] not in self.dropped]:
            what = f"{images(len(leaks))} of train or val in a later split too, which flatters the result"
            lines.append(f"{what}; the first: {self._named(*leaks[0])}; data.on_leak: drop leaves them out")
        if two := list(self.two_labels("equal").items()):
            one = f"{shown(self.ids[two[0][0]])}, {self.relation(*two[0])}"
            lines.append(f"{images(len(two))} under two labels, the first: {one}; correct the labels")
        if gone := self.corrected.gone:
            named = first([shown(name) for name in gone], NAMED)
            lines.append(f"{CORRECTIONS}: {len(gone):,} of these images are gone: {named}; remove their lines")
        if self.missed:
            lines.append(f"{first(self.missed, NAMED, '; ')}; smaller groups or another data.seed may come nearer")
        if missing := [f"{shown(name)} in {split}" for name, split in self.missing()]:
            lines.append(f"no images of class {first(missing, NAMED)}")
        dark = int(np.count_nonzero((self.peaks > 0) & (self.peaks < 1 << 12)))
        if self.depth == 16 and self.peaks.any() and (dark or self.peaks.max() < 1 << 15):
            lines.append(f"{self.range()}; {dark:,} of them have none above 4,095; see data.depth")
        if self.complaints:
            row, complaint = next(iter(self.complaints.items()))
            what = f"{images(len(self.complaints))} read, but with a damaged part, the first: {shown(self.ids[row])}"
            lines.append(f"{what}: {shown(complaint)}; save such images anew")
        return lines

    def range(self) -> str:
        """Return how many images have 16 bits, and their largest value, in words."""
        deep = f"{images(np.count_nonzero(self.peaks))} of 16 bits"
        return f"{deep}, values up to {self.peaks.max():,}, taken as {self.depth} bits"

    def check_depth(self) -> None:
        """Raise UserError if half of the images of 16 bits have 16 grays or fewer left in 8 bits."""
        peaks = self.peaks[self.peaks > 0]
        if len(peaks) and (median := int(np.median(peaks))) < 1 << 12:
            bits = max(8, min(int(peaks.max()).bit_length(), 12))
            way_out = f"set data.depth: {bits} (white is {(1 << bits) - 1:,}), or 16 if they are meant to be so dark"
            dark = f"half of them have none above {median:,} and would be nearly black"
            raise UserError(f"{self.range()}: {dark}; {way_out}")

    def treat_leaks(self, on_leak: Literal["error", "warn", "drop"]) -> None:
        """Leave the leaks out, or raise UserError that names the first; with `warn` do neither."""
        leaks = self.leaks()
        if on_leak == "drop":
            self.dropped.update((row, self.relation(row, twin)) for row, twin in leaks.items())
        if on_leak == "error" and leaks:
            named = first([self._named(row, twin) for row, twin in leaks.items()], NAMED, "; ")
            way_out = "set data.on_leak: drop (leaves out the one that is not in the later split) or warn"
            what = f"{images(len(leaks))} of train or val in a later split too: {named}"
            raise UserError(f"{what}; remove one of each pair, or {way_out}")

    def _named(self, row: int, twin: int) -> str:
        return f"{shown(self.ids[row])} ({SPLITS[self.splits[row]]}), {self.relation(row, twin)}"


def check(
    splits: list[Split], corrected: Corrected, seen: np.ndarray, wrong: Mapping[int, str], params: PrepareParams
) -> Findings:
    """Find duplicates and what cannot be read; seen, wrong: of `pack`. Raises UserError for the latter as params say.

    What is unreadable or dropped by corrections is left out of everything.
    """
    archive = corrected.archive
    ids, label_of = list(map(image_id, archive.members)), {name: i for i, name in enumerate(archive.source.classes)}
    labels = np.array([label_of[name] for name in corrected.class_names])
    bad = {row: why for row, why in wrong.items() if not seen["width"][row] and row not in corrected.dropped}
    if bad and params.on_corrupt == "error":
        way_out = "cannot be read; replace or remove them, or set data.on_corrupt: drop"
        listed = first([f"{shown(ids[row])}: {why}" for row, why in bad.items()], LISTED, "\n  ")
        raise UserError(f"{images(len(bad))} {way_out}:\n  {listed}")
    dropped = bad | corrected.dropped
    placed = np.array([SPLITS.index(split) for split in splits])
    placed[list(dropped)] = -1
    similar_bits = bits_of_similar(seen["hash"][placed >= 0], labels[placed >= 0])
    equal = equal_images(seen["digest"], placed)
    twins = {"equal": equal, "similar": similar_images(seen["hash"], placed, equal, similar_bits)}
    sizes = np.stack([seen["width"], seen["height"]], axis=1)
    said = {row: why for row, why in wrong.items() if row not in dropped}
    found = archive, ids, placed, labels, sizes, similar_bits, twins, seen["peak"], params.bits, corrected
    return Findings(*found, corrected.counts(splits), dropped=dropped, complaints=said)


def _extremes(values: np.ndarray) -> dict[str, int]:
    """Return smallest, median (the lower of two) and largest."""
    values = np.sort(values)
    return {"min": int(values[0]), "median": int(values[(len(values) - 1) // 2]), "max": int(values[-1])}


def images(count: int | np.integer[Any]) -> str:
    """Return a number of images in words."""
    return "1 image" if count == 1 else f"{count:,} images"
