"""Groups of test images, and which of them the model gets wrong more often than the rest.

Images are grouped by each property: the further columns of the user's CSV, size and aspect of the files where these
differ, and brightness, contrast and sharpness of the prepared images; and by each pair of properties. Needs no torch.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reprise.runtime.errors import brief, first
from reprise.runtime.intervals import holm, wilson
from reprise.runtime.tables import plain, write_csv

SMALLEST = 20  # images of a group that is judged
LEVEL = 0.05  # of significance, after Holm's correction for all groups and pairs that are judged
MOST_VALUES = 20  # distinct numbers that are values of their own; a column of more is cut into quarters
QUARTERS = np.array(["lowest", "low", "high", "highest"])
NO_NUMBER = ("", "-", "n/a", "na", "nan", "none", "null")  # in lower case
LONGEST = 80  # characters of a value; a column with a longer one is text, and no property
MOST = 2_000  # groups, the first ones, that are judged, and searched for pairs


@dataclass(frozen=True)
class Group:
    """Images that share a value of a property, `camera=2`, or of two: `camera=2 & brightness=low`; right: of them.

    p: one-sided exact p-value (Fisher's test) of so few being right if the group is no worse than the other images,
    corrected by Holm's method. A pair is compared with the others of either of its two groups: p is the larger value.
    """

    parts: tuple[str, ...]
    images: int
    right: int
    p: float

    @property
    def name(self) -> str:
        """What `evaluate.gates` calls it, after `group.`."""
        return " & ".join(self.parts)


@dataclass(frozen=True)
class Groups:
    """The groups of N images.

    members: {property: each image's value, or quarter}, N names, without properties that make no group. ranges:
    {group: its numbers} where numbers were cut. judged: groups and pairs of at least SMALLEST images, the most
    significant first, and of equally significant ones that with the lowest upper end of Wilson's interval.
    """

    members: dict[str, list[str]]
    ranges: dict[str, str]
    judged: list[Group]

    def sentence(self) -> str:
        """Return what was found, in one line."""
        named = [f"{brief(one.name)} ({one.right:,} of {one.images:,} right)" for one in self.judged if one.p <= LEVEL]
        of_all = f"of {len(self.judged):,} groups of at least {SMALLEST} images"
        none = f"none {of_all} is shown to be worse than the rest"
        return f"worse than the rest, {of_all}: {first(named, 5)}" if named else none

    def range_of(self, group: Group) -> str:
        """Return the numbers that the quarters in a group's name stand for; "" if there are none."""
        return " & ".join(self.ranges[part] for part in group.parts if part in self.ranges)

    def save(self, table: Path, members: Path, ids: Sequence[str]) -> None:
        """Write the groups, of pairs those that are worse than the rest, and the values of each image (CSV)."""
        rows = []
        for group in self.judged:
            if len(group.parts) == 1 or group.p <= LEVEL:
                shares = group.right / group.images, *wilson(group.right, group.images), group.p
                rows.append([group.name, self.range_of(group), group.images, *(f"{share:.6g}" for share in shares)])
        write_csv(table, ["group", "values", "images", "accuracy", "low", "high", "p"], rows)
        write_csv(members, ["id", *self.members], zip(ids, *self.members.values(), strict=True))


def group_name(name: str, value: str) -> str:
    """Return what a group is called, `camera=2`; of two groups that differ, the names, joined by " & " too, differ.

    For that, a name or value with one of the characters = & " is quoted as in JSON.
    """
    return "=".join(json.dumps(part, ensure_ascii=False) if set('=&"') & set(part) else part for part in (name, value))


def read_members(content: str) -> dict[str, list[str]]:
    """Parse what `Groups.save` has written of the images: {property: the value of each image, in their order}."""
    _, *columns = zip(*csv.reader(io.StringIO(content, newline="")), strict=True)
    return {plain(name): [plain(value) for value in values] for name, *values in columns}


def find_groups(images: np.ndarray, columns: dict[str, list[str]], right: np.ndarray) -> Groups:
    """Group images (N, H, W, C) uint8 by what they show and by columns of N values; right: which are right, bool (N,).

    A column of the name of a measured property takes its place.
    """
    members, ranges = dict[str, list[str]](), dict[str, str]()
    for title, values in (measured(images) | columns).items():
        name, (parts, numbers) = title.replace("\r", " "), _cut(values)
        if SMALLEST <= max(Counter(parts).values(), default=0) < len(right):
            members[name] = parts
            ranges |= {group_name(name, part): said for part, said in numbers.items()}
    return Groups(members, ranges, judge(members, right) if members else [])


def measured(images: np.ndarray) -> dict[str, list[float]]:
    """Return what images (N, H, W, C) uint8 show, N numbers each, 0 being black and 1 white.

    brightness: mean; contrast: standard deviation; sharpness: root mean square of the Laplacian; all of the mean of the
    channels. From sums of integers, so that they are the same on every machine.
    """
    step = max(1, (16 << 20) // (images[0].size * 8))  # 16 MB at a time
    parts = [_sums(images[start : start + step]) for start in range(0, len(images), step)]
    total, squares, edges = np.concatenate(parts, axis=1)
    pixels, inner = images[0, ..., 0].size, max(1, images[0, 2:, 2:, 0].size)
    shown = total / pixels, np.sqrt(pixels * squares - total**2) / pixels, np.sqrt(edges / inner)
    white = 255 * images.shape[3]
    return dict(zip(("brightness", "contrast", "sharpness"), (np.stack(shown) / white).tolist(), strict=True))


def _sums(images: np.ndarray) -> np.ndarray:
    """Return the sums of the pixels, of their squares, and of the squared Laplacian of each image, int64 (3, N)."""
    gray = images.sum(axis=3, dtype=np.int64)
    laplacian = np.diff(gray, 2, axis=2)[:, 1:-1] + np.diff(gray, 2, axis=1)[:, :, 1:-1]
    return np.stack([part.sum(axis=(1, 2)) for part in (gray, gray**2, laplacian**2)])


def _cut(values: Sequence[str | float]) -> tuple[list[str], dict[str, str]]:
    """Return the name of each value's part, none for those of a text or of ids, and {part: its numbers}.

    More than MOST_VALUES distinct numbers are cut into quarters, and what stands for none is a part of its own.
    Integers that are all distinct are ids. A carriage return, which CSV files do not keep, becomes a space.
    """
    try:
        numbers = np.array([np.nan if str(value).lower() in NO_NUMBER else float(value) for value in values])
    except ValueError:
        numbers = np.array([np.inf])
    known = numbers[~np.isnan(numbers)]
    if np.isinf(known).any() or len(np.unique(known)) <= MOST_VALUES:
        texts = [str(value).replace("\r", " ") or "(empty)" for value in values]
        return texts if max(map(len, texts), default=0) <= LONGEST else [], {}
    if len(np.unique(known)) == len(known) and (known % 1 == 0).all():
        return [], {}
    quarters = QUARTERS[np.searchsorted(np.quantile(known, [0.25, 0.5, 0.75]), numbers)]
    parts = np.where(np.isnan(numbers), "(empty)", quarters)
    inside = {part: numbers[parts == part] for part in QUARTERS.tolist()}
    digits = ".15g" if (known % 1 == 0).all() else ".4g"
    return parts.tolist(), {
        part: f"{some.min():{digits}} to {some.max():{digits}}" for part, some in inside.items() if len(some)
    }


def judge(members: Mapping[str, Sequence[str] | np.ndarray], right: np.ndarray) -> list[Group]:
    """Return the groups of at least SMALLEST of N images by one property and by two, see `Groups.judged`.

    members: {property: each image's value}, of one property or more; right: which images are, bool (N,).
    """
    from scipy.sparse import csr_array, hstack
    from scipy.stats import hypergeom  # takes half a second

    names, blocks = [], []
    for name, values in members.items():
        parts, index = np.unique(values, return_inverse=True)
        names += [group_name(name, part) for part in parts.tolist()]
        blocks.append(csr_array((np.ones(len(index), int), (np.arange(len(index)), index))))
    holds = hstack(blocks, format="csr")  # (N, groups): 1 for an image of the group
    large = np.flatnonzero(holds.sum(axis=0) >= SMALLEST)[:MOST]
    images, found = ((part.T @ part).toarray() for part in (holds[:, large], holds[right][:, large]))  # of each pair
    one, other = np.nonzero(np.triu(images >= SMALLEST))  # of a single group, both are this
    sizes, single = images.diagonal(), one == other
    own = single | (images[one, other] < np.minimum(sizes[one], sizes[other]))  # no group again under another name
    one, other, single = one[own], other[own], single[own]
    counts, p = np.stack([images[one, other], found[one, other]]), np.ones(len(one))  # images and those right
    wrong = np.flatnonzero(counts[1] < counts[0])  # of the others, p is 1
    of_rest = []
    for part in (one[wrong], other[wrong]):
        total = np.where(single[wrong], [[len(right)], [right.sum()]], [sizes[part], found.diagonal()[part]])
        of_rest.append(hypergeom.cdf(counts[1, wrong], *total, counts[0, wrong]))
    p[wrong] = np.maximum(*of_rest)
    rows = zip(large[one].tolist(), large[other].tolist(), *counts.tolist(), holm(p.tolist()), strict=True)
    judged = [Group(tuple(dict.fromkeys((names[a], names[b]))), *counts) for a, b, *counts in rows]
    return sorted(judged, key=lambda group: (group.p, wilson(group.right, group.images)[1]))
