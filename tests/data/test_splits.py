"""Splits are stratified, decided by name and seed alone, and respect what the source gives."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_no_release_moves_an_image_to_another_split():
    splits = assign_splits(IDS, CLASSES, UNSPLIT, 0.1, 0.2, seed=0)
    assert hashlib.sha256(" ".join(splits).encode()).hexdigest()[:16] == "e1fb79b98b2ef762"


SHARES = st.floats(0.01, 0.45)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_every_class_is_in_every_split_whatever_the_names_sizes_and_order(data):
    sizes = data.draw(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(3, 25), min_size=1, max_size=4))
    val_fraction, test_fraction, seed = data.draw(SHARES), data.draw(SHARES), data.draw(st.integers(0, 2**32))
    images = [(f"{name}/{number}", name) for name, size in sizes.items() for number in range(size)]

    def assigned(images):
        ids, class_names = [image_id for image_id, _ in images], [name for _, name in images]
        given = ["unsplit"] * len(images)
        return dict(zip(ids, assign_splits(ids, class_names, given, val_fraction, test_fraction, seed), strict=True))

    splits = assigned(images)
    assert assigned(data.draw(st.permutations(images))) == splits
    for name, size in sizes.items():
        own = [image for image in images if image[1] == name]
        counts = Counter(splits[image_id] for image_id, _ in own)
        assert set(counts) == {"train", "val", "test"}
        assert counts["test"] == max(1, min(round(test_fraction * size), size - 2))
        assert counts["val"] == max(1, min(round(val_fraction * size), size - 1 - counts["test"]))
        assert assigned(own).items() <= splits.items()  # other classes play no part


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    given_splits=st.lists(st.sampled_from(["train", "val", "test"]), max_size=30),
    held_out=st.lists(st.sampled_from(["val", "test"]), max_size=1),
    seed=st.integers(0, 9),
)
def test_a_split_that_the_source_has_is_kept(given_splits, held_out, seed):
    given_splits = ["train"] * 3 + [split for split in given_splits if split not in held_out]
    ids = [f"a/{number}" for number in range(len(given_splits))]
    splits = assign_splits(ids, ["a"] * len(ids), given_splits, 0.2, 0.2, seed)
    for was, now in zip(given_splits, splits, strict=True):
        assert now == was or (was == "train" and now not in given_splits)
    assert set(splits) == {"train", "val", "test"}
