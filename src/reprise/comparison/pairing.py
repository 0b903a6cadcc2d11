"""Which images two revisions have in common, by content and not by name alone, and what became of the others.

Two raw archives that are equal hold the same images under the same names. Where they differ, an image is identified by
the CRC-32 and size that the archive records, also after it was renamed or relabeled.
"""

import json
import zipfile
from collections import defaultdict
from functools import cached_property

import numpy as np

from reprise.data.formats.packed import SPLITS
from reprise.data.formats.raw import image_id
from reprise.repo.revisions import PROCESSED, RAW, Revision
from reprise.runtime.errors import UserError, listed


class OtherDataError(UserError):
    """Two revisions that were measured on different data: no comparison is possible, and nothing is wrong."""


class Pairing:
    """The matching of the images of two revisions. notes: what the reader has to know of it."""

    def __init__(self, base: Revision, head: Revision) -> None:
        self.base, self.head = base, head
        self.notes: list[str] = []
        self.same_raw = base.md5(RAW) is not None and base.md5(RAW) == head.md5(RAW)

    @cached_property
    def contents(self) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]] | None:
        """Of base and of head, {name: (CRC-32, size)} of every image; None where that is not known."""
        base, head = _contents(self.base), _contents(self.head)
        if base is not None and head is not None:
            return base, head
        found = {str(self.base): base, str(self.head): head}
        lacking = " and ".join(name for name, known in found.items() if known is None)
        self.notes.append(
            f"The raw images differ, and those of {lacking} are not in DVC's cache: images are matched by name alone. "
            "`dvc fetch --all-branches` brings them."
        )
        return None

    def match(self, base: list[str], head: list[str]) -> dict[str, str]:
        """Return {head's name: base's name} of the images that are the same, of these names of base and of head."""
        ours = set(base)
        if self.same_raw or self.contents is None:
            return {name: name for name in head if name in ours}
        of_base, of_head = self.contents
        same = {name: name for name in head if name in ours and of_base.get(name) == of_head.get(name)}
        left = defaultdict(list)
        for name in sorted(ours - same.keys(), reverse=True):
            left[of_base.get(name)].append(name)
        for name in sorted(set(head) - same.keys()):
            if name in of_head and left[of_head[name]]:
                same[name] = left[of_head[name]].pop()
        return same

    def test_images(self) -> tuple[np.ndarray, list[str]]:
        """Return the rows (2, N) of the common test images in base's and in head's predictions, and the common classes.

        Only images are kept whose label, head's, is a class of both. Raises UserError if that leaves none.
        """
        one, other = self.base.predictions, self.head.predictions
        labels = set(one.classes) & set(other.classes)
        own = [(self.base, sorted(set(one.classes) - labels)), (self.head, sorted(set(other.classes) - labels))]
        if parts := [f"only {revision} has {listed(names, 10)}" for revision, names in own if names]:
            self.notes.append(
                f"The classes differ: {'; '.join(parts)}. Compared are the images of the {len(labels)} shared classes; "
                "an answer that names another class counts as wrong."
            )
        same = self.match(one.ids, other.ids)
        row_of = {name: row for row, name in enumerate(one.ids)}
        common = [(row, name) for row, name in enumerate(other.ids) if name in same and other.labels[row] in labels]
        rows = [(row_of[same[name]], row) for row, name in common]
        sizes = f"{self.base} has {len(one.ids):,} test images, {self.head} {len(other.ids):,}"
        if not rows:
            none = "none of the shared classes" if same else "none"
            why = f"no common images: {sizes}, and {none} is in both; compare revisions of the same data"
            raise UserError(why) if same or self._shares_images() else OtherDataError(why)
        if len(rows) < max(len(one.ids), len(other.ids)):
            self.notes.append(f"The test sets differ: {sizes}. Only the {len(rows):,} that both have are compared.")
        changed = sum(one.labels[row] != other.labels[column] for row, column in rows)
        if changed:
            self.notes.append(f"Changed labels of test images: {changed:,}; both are judged by those of {self.head}.")
        return np.array(rows).T, [name for name in other.classes if name in labels]

    def _shares_images(self) -> bool:
        """Return whether the two have an image of any split in common, by content or by name."""
        if self.same_raw or self.contents is None:
            return self.same_raw or not set(self.base.predictions.ids).isdisjoint(self.head.predictions.ids)
        base, head = self.contents
        return not (base.keys().isdisjoint(head) and set(base.values()).isdisjoint(head.values()))

    def data_changes(self) -> dict[str, list[tuple[str, ...]]] | None:
        """Return {change: images}, each image as (name,) or (name, before, after), of all splits.

        None if a revision's prepared data are not available.
        """
        if self.base.md5(PROCESSED) == self.head.md5(PROCESSED):
            return {}
        before, after = (_places(revision) for revision in (self.base, self.head))
        if before is None or after is None:
            lacking = self.base if before is None else self.head
            self.notes.append(f"{PROCESSED} of {lacking} is not in DVC's cache: what changed in the data is not shown.")
            return None
        same = self.match(list(before), list(after))
        added, removed = after.keys() - same.keys(), before.keys() - set(same.values())
        pairs = [(name, before[same[name]], after[name]) for name in sorted(same)]
        return {
            "added": [(name,) for name in sorted(added - removed)],
            "removed": [(name,) for name in sorted(removed - added)],
            "other content": [(name,) for name in sorted(added & removed)],
            "moved between splits": [(name, one[0], other[0]) for name, one, other in pairs if one[0] != other[0]],
            "relabeled": [(name, one[1], other[1]) for name, one, other in pairs if one[1] != other[1]],
        }


def _contents(revision: Revision) -> dict[str, tuple[int, int]] | None:
    path = revision.out(f"{RAW}/images.zip")
    if path is None:
        return None
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    return {image_id(entry.filename): (entry.CRC, entry.file_size) for entry in entries}


def _places(revision: Revision) -> dict[str, tuple[str, str]] | None:
    """Return {name: (split, label)} of every prepared image; None if they are not available."""
    metadata = revision.out(f"{PROCESSED}/metadata.json")
    if metadata is None:
        return None
    classes = json.loads(metadata.read_bytes())["classes"]
    places: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        ids, labels = (revision.out(f"{PROCESSED}/{split}_{part}") for part in ("ids.json", "labels.npy"))
        if ids is None or labels is None:
            return None
        for name, label in zip(json.loads(ids.read_bytes()), np.load(labels, allow_pickle=False).tolist(), strict=True):
            places[name] = (split, classes[label])
    return places
