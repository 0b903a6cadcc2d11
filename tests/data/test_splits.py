"""Splits are stratified, decided by name and seed alone, and respect what the source gives."""

from collections import Counter

import pytest

from reprise.data.splits import assign_splits
from reprise.errors import UserError

IDS = [f"{name}/{number:03d}" for name in "abc" for number in range(100)]
CLASSES = [image_id[0] for image_id in IDS]
UNSPLIT = ["unsplit"] * len(IDS)


def test_each_class_is_divided_in_the_stated_shares():
    splits = assign_splits(IDS, CLASSES, UNSPLIT, 0.1, 0.2, seed=0)
    assert Counter(zip(CLASSES, splits, strict=True)) == {
        (name, split): count for name in "abc" for split, count in (("train", 70), ("val", 10), ("test", 20))
    }


def test_the_order_of_the_images_plays_no_part():
    forward = dict(zip(IDS, assign_splits(IDS, CLASSES, UNSPLIT, 0.1, 0.2, seed=0), strict=True))
    backward = dict(zip(IDS[::-1], assign_splits(IDS[::-1], CLASSES[::-1], UNSPLIT, 0.1, 0.2, seed=0), strict=True))
    assert forward == backward


def test_the_seed_does():
    one, two = (assign_splits(IDS, CLASSES, UNSPLIT, 0.1, 0.2, seed=seed) for seed in (0, 1))
    assert one != two


def test_a_given_test_split_is_respected_and_validation_comes_out_of_train():
    given = ["test" if index % 4 == 0 else "train" for index in range(len(IDS))]
    splits = assign_splits(IDS, CLASSES, given, 0.2, 0.5, seed=0)
    assert [split == "test" for split in splits] == [split == "test" for split in given]
    assert Counter(splits) == {"train": 180, "val": 45, "test": 75}


def test_three_images_are_enough_and_two_are_not():
    splits = assign_splits(["a/1", "a/2", "a/3"], ["a"] * 3, ["unsplit"] * 3, 0.01, 0.98, seed=0)
    assert sorted(splits) == ["test", "train", "val"]
    with pytest.raises(UserError, match=r"3 splits one: class few \(2\)"):
        assign_splits(
            [*IDS, "few/1", "few/2"], [*CLASSES, "few", "few"], [*UNSPLIT, "unsplit", "unsplit"], 0.1, 0.2, seed=0
        )


def test_a_class_that_only_the_test_split_has_is_named():
    with pytest.raises(UserError, match=r"class new \(0\)"):
        assign_splits([*IDS, "new/1"], [*CLASSES, "new"], ["train"] * len(IDS) + ["test"], 0.1, 0.2, seed=0)
