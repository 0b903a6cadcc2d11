"""Which image trains, which validates, which tests: decided by a hash of the seed and the image's name.

The order of the files, the platform and every other image's content play no part, so the same images and seed give the
same splits everywhere. Each class is divided in the stated shares (stratified).
"""

import hashlib
from collections import defaultdict

from reprise.data.archive import UNSPLIT
from reprise.errors import UserError


def assign_splits(
    ids: list[str], class_names: list[str], given: list[str], val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Return `train`, `val` or `test` for each image.

    ids: a unique name per image; given: the source's own split per image, or `unsplit`. Splits that the source has are
    kept as they are; the missing ones are taken from `unsplit` or, where there is none, from `train`. Every class gets
    at least one image in each split; UserError names the classes with too few images for that.
    """
    has = set(given)
    pool_name = UNSPLIT if UNSPLIT in has else "train"
    shares = {split: share for split, share in (("test", test_fraction), ("val", val_fraction)) if split not in has}
    pools: dict[str, list[int]] = defaultdict(list)
    splits = ["train" if split == UNSPLIT else split for split in given]
    for index, (class_name, split) in enumerate(zip(class_names, given, strict=True)):
        if split == pool_name:
            pools[class_name].append(index)

    needed = 1 + len(shares)
    short = [f"{name} ({len(pools[name])})" for name in sorted(set(class_names)) if len(pools[name]) < needed]
    if short:
        raise UserError(
            f"too few images to give each of {needed} splits one: class {', '.join(short)}; add images of these "
            "classes or remove them"
        )
    for members in pools.values():
        members.sort(key=lambda index: _rank(seed, ids[index]))
        start = 0
        for left, (split, share) in enumerate(shares.items()):
            room = len(members) - start - (len(shares) - left)  # one for each split still to come, train included
            count = max(1, min(round(share * len(members)), room))
            for index in members[start : start + count]:
                splits[index] = split
            start += count
    return splits


def _rank(seed: int, image_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{image_id}".encode("utf-8", "surrogateescape")).digest()
