"""Splits: a hash of the seed and an image's identity decides whether it trains, validates or tests.

Its identity is its content or, where groups are asked for, its group. Without groups, each one's split follows from its
own hash alone, so added images move no others, and neither names, nor the order of the files, nor the platform play a
part; equal images, and all images of a group, land together. Only a class so small that its hashes leave a split
without it borrows images from another split; in such a class, and what shares its groups, added images cause moves.

Groups are few and unequal, so their sizes count as well: the groups of a class lie side by side in the order of their
hashes, and each goes to the split that asks for the place of its middle. An added image or group moves few others: of
its own class those that lie at the ends of a split, and one that grows larger than the share.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import cast

from reprise.data.formats.packed import Split
from reprise.data.formats.raw import UNSPLIT, RawArchive, image_id, shown
from reprise.params.schema import PrepareParams
from reprise.runtime.errors import UserError

ByClass = dict[str, Counter[str]]  # of each identity its images by class


def identify(archive: RawArchive, group: str | None = None) -> list[str]:
    """Return each image's identity, which decides its split: its content or, with `group`, its group.

    The content is told by size and CRC-32 and, where images differ that share these, by SHA-256 as well: PNGs contain
    CRCs of their own, so that theirs take about 2^16 values.

    group: a column of the source's table, or a regular expression whose first group (or whole match) in the image's
    path is meant. Raises UserError, with its name, for an image that has no group, and for a group in two of the
    source's own splits.
    """
    if group is None:
        names = [f"{extent.size} bytes, CRC {extent.crc:08x}" for extent in archive.members.values()]
        shared = Counter(names)
        whole = list(names)
        for row, (member, name) in enumerate(zip(archive.members, names, strict=True)):
            if shared[name] > 1:
                whole[row] = f"{name}, SHA-256 {hashlib.sha256(archive.read(member)).hexdigest()}"
        contents = Counter(name for name, _ in set(zip(names, whole, strict=True)))
        return [full if contents[name] > 1 else name for name, full in zip(names, whole, strict=True)]
    columns = archive.source.columns
    found: list[str] = []
    for member in archive.members:
        path = image_id(member)
        if group in columns:
            value = archive.columns.get(member, {}).get(group)
            reason = f"the column is empty for {shown(path)}; fill it in"
        else:
            match = re.search(group, path)
            value = None if match is None else match[1 if match.re.groups else 0]
            known = f"no column of the table ({', '.join(columns)}) and " if columns else ""
            reason = f"{known}as a regular expression it finds nothing in {shown(path)}; name a group for every image"
        if not value:
            raise UserError(f"data.group = {group}: {reason}")
        found.append(value)
    split_of: dict[str, str] = {}
    for value, split in zip(found, archive.placed()[0], strict=True):
        if split_of.setdefault(value, split) != split:
            where = f"group {shown(value)} lies in two of the data's own splits, {split_of[value]} and {split}"
            raise UserError(f"data.group = {group}: {where}; move its images into one")
    return found


def assign_splits(
    identities: list[str], class_names: list[str], given: list[str], params: PrepareParams
) -> list[Split]:
    """Return the split of each image.

    identities: see `identify`; images of one identity stay together. given: the source's own split per image, or
    `unsplit`. Splits that the source has are kept as they are; the missing ones are taken from `unsplit` or, where
    there is none, from `train`: an image whose hash u, uniform in [0, 1), is below test_fraction tests, the next
    val_fraction validate. With folds, floor(u * folds) is the image's fold; the chosen one tests or, where the source
    has a test split, validates. With groups, see `_by_group`. Every class gets an image in each of these splits;
    UserError names those with too few.
    """
    pool, shares = _asked(given, params)
    if params.folds is not None and not shares:
        raise UserError("data.folds: the data have test and val splits of their own: nothing to fold; set it to null")

    images: ByClass = defaultdict(Counter)
    for identity, class_name, split in zip(identities, class_names, given, strict=True):
        if split == pool:
            images[identity][class_name] += 1
    ranks = {identity: _uniform(params.seed, identity) for identity in images}
    by_size = params.group is not None
    images = dict(sorted(images.items(), key=lambda item: (by_size and item[1].total(), ranks[item[0]], item[0])))
    splits = {identity: _by_hash(rank, shares, params) for identity, rank in ranks.items()}
    if by_size:
        splits = _by_group(images, ranks, shares, params.fold)
    _give_each_class_one(splits, images, sorted(set(class_names)), [*shares, "train"])
    pairs = zip(identities, given, strict=True)
    return [splits[identity] if split == pool else cast(Split, split) for identity, split in pairs]


def _asked(given: list[str], params: PrepareParams) -> tuple[str, dict[Split, float]]:
    """Return the split that the source gives images from, and the share of them that each missing split asks for."""
    missing: list[Split] = [split for split in ("test", "val") if split not in given]
    shares = {split: params.test_fraction if split == "test" else params.val_fraction for split in missing}
    if params.folds is not None and missing:
        shares[missing[0]] = 1 / params.folds
    return UNSPLIT if UNSPLIT in given else "train", shares


def missed_shares(splits: list[Split], class_names: list[str], given: list[str], params: PrepareParams) -> list[str]:
    """Return in words where groups miss the shares asked for: by more than a tenth.

    Of a split a tenth of its share (10 % asked: less than 9 %, more than 11 %), of a class, which has fewer groups, a
    tenth of its images (20 % asked: less than 10 %, more than 30 %). Without groups, shares vary as by chance.
    """
    pool, shares = _asked(given, params)
    found: Counter[tuple[str, str]] = Counter()  # ("", ""): all images
    for name, split, was in zip(class_names, splits, given, strict=True):
        if was == pool and params.group is not None:
            found.update([("", ""), ("", split), (name, ""), (name, split)])
    missed = []
    for name, total in sorted((name, total) for (name, split), total in found.items() if not split):
        for split, share in shares.items():
            if abs(found[name, split] - share * total) > total / 10 * (1 if name else share):
                of = f" of class {shown(name)}" * bool(name)
                missed.append(f"{split} has {found[name, split]:,} of {total:,} images{of}, {share:.0%} asked")
    return missed


def _uniform(seed: int, identity: str) -> float:
    """Return a number in [0, 1), a multiple of 2**-53: the same one everywhere."""
    digest = hashlib.sha256(f"{seed}/{identity}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def _by_hash(rank: float, shares: dict[Split, float], params: PrepareParams) -> Split:
    """Place by share or by fold; what is uniform in [0, 1) within each fold decides who validates among the others."""
    if params.folds is None:
        below = 0.0
        for split, share in shares.items():
            below += share
            if rank < below:
                return split
        return "train"
    held_out, *others = shares
    own = int(rank * params.folds)
    if own == params.fold:
        return held_out
    share_of_rest = shares["val"] * params.folds / (params.folds - 1) if others else 0.0
    return "val" if rank * params.folds - own < share_of_rest else "train"


def _by_group(images: ByClass, ranks: Mapping[str, float], shares: dict[Split, float], fold: int) -> dict[str, Split]:
    """Place groups of unequal size: the first split is filled, then the second from what is left.

    fold: which part of its share the first split takes, from 0.
    """
    splits: dict[str, Split] = dict.fromkeys(images, "train")
    left = 1.0
    for split, share in shares.items():
        rest = {group: images[group] for group, so_far in splits.items() if so_far == "train"}
        for group, middle in _side_by_side(rest, ranks, share / left).items():
            if int(middle * left / share) == fold:
                splits[group] = split
        left, fold = left - share, 0
    return splits


def _side_by_side(images: ByClass, ranks: Mapping[str, float], share: float) -> dict[str, float]:
    """Return the middle in (0, 1) of each group, among those of its most frequent class by number of images.

    Groups that exceed the share by themselves come last, the others in the order of their hashes.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    for group, counts in images.items():
        lines[max(sorted(counts), key=counts.__getitem__)].append(group)
    sizes, middles = {group: counts.total() for group, counts in images.items()}, {}
    for line in lines.values():
        begin, total = 0, sum(map(sizes.__getitem__, line))
        for group in sorted(line, key=lambda group: (sizes[group] > share * total, ranks[group], group)):
            middles[group] = (begin + sizes[group] / 2) / total
            begin += sizes[group]
    return middles


def _give_each_class_one(
    splits: dict[str, Split], classes_of: ByClass, classes: list[str], needed: list[Split]
) -> None:
    """Move the first identities of `classes_of` into splits where a class has none, out of splits that can spare them.

    Training spares first, so that a fold keeps the images that it holds out while training has others.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for identity, names in classes_of.items():
        for class_name in names:
            members[class_name].append(identity)
    short = [f"{name} ({len(members[name])})" for name in classes if len(members[name]) < len(needed)]
    if short:
        few = f"too few images to give each of {len(needed)} splits one: class {', '.join(short)}"
        way_out = "equal images, and all of a group, count as one; add images of these classes or remove them"
        raise UserError(f"{few}; {way_out}")
    counts = Counter((name, splits[identity]) for identity, names in classes_of.items() for name in names)
    for name in classes:
        for split in needed:
            if counts[name, split]:
                continue
            train_first = sorted(members[name], key=lambda identity: splits[identity] != "train")
            spare = (i for i in train_first if all(counts[other, splits[i]] > 1 for other in classes_of[i]))
            moved = next(spare, None)
            if moved is None:
                why = f"no group can go to {split} to give class {name} an image there without leaving another split"
                raise UserError(f"{why} without a class; try another data.seed, or smaller groups")
            for other in classes_of[moved]:
                counts[other, splits[moved]] -= 1
                counts[other, split] += 1
            splits[moved] = split
