"""Each image's place follows from its own hash; what belongs together stays together; what the source gives is kept."""

import hashlib
import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reprise.data.formats.raw import RawArchive, RawImage, write_archive
from reprise.data.prepare.splits import assign_splits, identify, missed_shares
from reprise.runtime.errors import UserError
from tests.conftest import data_params

PARAMS = data_params()  # read once
IDS = [f"{name}/{number:03d}" for name in "abc" for number in range(100)]
CLASSES = [image_id[0] for image_id in IDS]
UNSPLIT = ["unsplit"] * len(IDS)
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SHARES = st.floats(0.01, 0.45)


def splits_of(identities, class_names, given, val_fraction, test_fraction, seed=0, folds=None, fold=0):
    changes = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed, "folds": folds, "fold": fold}
    return assign_splits(identities, class_names, given, PARAMS.model_copy(update=changes))


def assigned(images, *options, given="unsplit"):
    """Return {identity: split} of (identity, class) pairs."""
    identities, class_names = [identity for identity, _ in images], [name for _, name in images]
    given = [given] * len(images)
    return dict(zip(identities, splits_of(identities, class_names, given, *options), strict=True))


def pairs(sizes):
    return [(f"{name}/{number}", name) for name, size in sizes.items() for number in range(size)]


@pytest.mark.parametrize(
    ("source", "shares"),
    [("unsplit", {"test": 0.2, "val": 0.1, "train": 0.7}), ("given test", {"val": 0.1, "train": 0.9})],
)
def test_the_stated_shares_hold_within_binomial_bounds(source, shares):
    images = pairs({"a": 10_000, "b": 3_000})
    for seed in range(3):
        given = ["unsplit"] * len(images) + (["test"] if source == "given test" else [])
        identities, class_names = zip(*images, *([("z", "a")] if source == "given test" else []), strict=True)
        splits = splits_of(identities, class_names, given, 0.1, 0.2, seed)[: len(images)]
        counts = Counter((name, split) for (_, name), split in zip(images, splits, strict=True))
        for name, size in (("a", 10_000), ("b", 3_000)):
            for split, share in shares.items():
                assert abs(counts[name, split] - size * share) < 4 * math.sqrt(size * share * (1 - share))


def test_images_of_one_size_and_crc_are_told_apart_and_the_identity_of_others_stays(tmp_path):
    def png(number):  # like the chunks of a PNG, it ends with its own CRC-32: that of the whole is always the same
        return b"%08d" % number + zlib.crc32(b"%08d" % number).to_bytes(4, "little")

    contents = {f"{number}": png(number) for number in range(50)} | {"copy of 7": png(7), "x": b"x", "copy of x": b"x"}
    images = [RawImage("unsplit", "ab"["copy" in name], name, content) for name, content in contents.items()]
    write_archive(tmp_path / "raw", "folder", ["a", "b"], images)
    identities = dict(zip(contents, identify(RawArchive(tmp_path / "raw")), strict=True))
    assert len(set(identities.values())) == 51
    assert identities["7"] == identities["copy of 7"] != identities["8"]
    assert identities["7"] == f"12 bytes, CRC 2144df1c, SHA-256 {hashlib.sha256(png(7)).hexdigest()}"
    assert identities["x"] == identities["copy of x"] == f"1 bytes, CRC {zlib.crc32(b'x'):08x}"


@QUICK
@given(
    sizes=st.dictionaries(st.text(min_size=1, max_size=5), st.integers(60, 90), min_size=1, max_size=3),
    added=st.dictionaries(st.text(min_size=1, max_size=5), st.integers(3, 60), max_size=3),
    seed=st.integers(0, 2**32 - 1),
    folds=st.none() | st.integers(2, 6),
    random=st.randoms(use_true_random=False),
)
def test_added_images_move_no_others_and_the_order_plays_no_part(sizes, added, seed, folds, random):
    more = [(f"new {identity}", name) for identity, name in pairs(added)]
    options = (0.2, 0.25, seed, folds, 1 if folds else 0)
    before = assigned(pairs(sizes), *options)
    images = [*pairs(sizes), *more]
    random.shuffle(images)
    assert before.items() <= assigned(images, *options).items()


@QUICK
@given(st.data())
def test_every_class_is_in_every_split_however_small(data):
    sizes = data.draw(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(3, 12), min_size=1, max_size=4))
    options = (data.draw(SHARES), data.draw(SHARES), data.draw(st.integers(0, 2**32 - 1)))
    images = pairs(sizes)
    splits = assigned(images, *options)
    assert assigned(data.draw(st.permutations(images)), *options) == splits
    for name in sizes:
        assert {splits[identity] for identity, of in images if of == name} == {"train", "val", "test"}
        own = [image for image in images if image[1] == name]
        assert assigned(own, *options).items() <= splits.items()  # other classes play no part


@QUICK
@given(st.data())
def test_what_belongs_together_stays_together(data):
    groups = data.draw(st.lists(st.sampled_from([f"p{number}" for number in range(25)]), min_size=20, max_size=60))
    class_names = data.draw(st.lists(st.sampled_from("ab"), min_size=len(groups), max_size=len(groups)))
    try:
        splits = splits_of(groups, class_names, ["unsplit"] * len(groups), 0.2, 0.3, data.draw(st.integers(0, 99)))
    except UserError as error:
        assert "too few images" in str(error) or "no group can go to" in str(error)
        assume(False)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    for name in set(class_names):
        placed = {split for split, of in zip(splits, class_names, strict=True) if of == name}
        assert placed == {"train", "val", "test"}


def test_groups_that_cannot_be_divided_are_refused():
    groups, class_names = ["p", "q", "r", "s", "t", "s", "t"], ["a", "a", "a", "b", "b", "a", "a"]
    with pytest.raises(UserError, match=r"3 splits one: class b \(2\); equal images, and all of a group, count as one"):
        splits_of(groups, class_names, ["unsplit"] * 7, 0.2, 0.2, seed=0)
    # each two of four groups meet in some class, so that no two may share one of three splits
    groups, class_names = ["p", "q", "r", "p", "q", "s", "p", "r", "s"], [*"aaa", *"bbb", *"ccc"]
    with pytest.raises(UserError, match=r"no group can go to \w+ to give class \w an image there .* data\.seed"):
        splits_of(groups, class_names, ["unsplit"] * 9, 0.3, 0.3, seed=0)


def test_the_seed_decides():
    one, two = (splits_of(IDS, CLASSES, UNSPLIT, 0.1, 0.2, seed=seed) for seed in (0, 1))
    assert one != two


@QUICK
@given(
    given_splits=st.lists(st.sampled_from(["train", "val", "test"]), max_size=30),
    held_out=st.lists(st.sampled_from(["val", "test"]), max_size=1),
    seed=st.integers(0, 9),
)
def test_a_split_that_the_source_has_is_kept(given_splits, held_out, seed):
    given_splits = ["train"] * 3 + [split for split in given_splits if split not in held_out]
    ids = [f"a/{number}" for number in range(len(given_splits))]
    splits = splits_of(ids, ["a"] * len(ids), given_splits, 0.2, 0.2, seed)
    for was, now in zip(given_splits, splits, strict=True):
        assert now == was or (was == "train" and now not in given_splits)
    assert set(splits) == {"train", "val", "test"}


def test_three_images_are_enough_and_two_are_not():
    assert set(assigned(pairs({"a": 3}), 0.01, 0.98, 0).values()) == {"train", "val", "test"}
    with pytest.raises(UserError, match=r"3 splits one: class few \(2\)"):
        assigned(pairs({"a": 100, "few": 2}), 0.1, 0.2, 0)


def test_a_class_that_only_the_test_split_has_is_named():
    with pytest.raises(UserError, match=r"class new \(0\)"):
        splits_of([*IDS, "new/1"], [*CLASSES, "new"], ["train"] * len(IDS) + ["test"], 0.1, 0.2, seed=0)


def test_no_release_moves_an_image_to_another_split():
    whole = [splits_of(IDS, CLASSES, UNSPLIT, 0.1, 0.2, 0, *folds) for folds in ((), (5, 3))]
    assert hashlib.sha256(" ".join([*whole[0], *whole[1]]).encode()).hexdigest()[:16] == "ac0fc3e684e4370a"


def test_folds_share_out_every_image_once_and_leave_the_stated_share_to_validate():
    images = pairs({"a": 4000, "b": 2000})
    runs = [assigned(images, 0.1, 0.2, 0, 5, fold) for fold in range(5)]
    tested = Counter(identity for run in runs for identity, split in run.items() if split == "test")
    assert set(tested.values()) == {1}
    assert len(tested) == 6000
    for run in runs:
        counts = Counter(run.values())
        for split, share in (("test", 0.2), ("val", 0.1)):
            assert abs(counts[split] - 6000 * share) < 4 * math.sqrt(6000 * share * (1 - share))


def test_small_classes_too_are_tested_whole_over_the_folds():
    images = [(f"{name}/{number // 3}", name) for name in "ab" for number in range(30)]
    for seed in range(20):
        runs = [assigned(images, 0.1, 0.2, seed, 3, fold) for fold in range(3)]
        assert all({"a", "b"} == {name for identity, name in images if run[identity] == "val"} for run in runs)
        assert {identity for run in runs for identity, split in run.items() if split == "test"} == runs[0].keys()


def test_folds_validate_where_a_test_split_is_given_and_are_refused_where_nothing_is_left_to_fold():
    ids, given = [*IDS, "t"], [*["train"] * 300, "test"]
    runs = [splits_of(ids, [*CLASSES, "a"], given, 0.1, 0.2, 0, 3, fold) for fold in range(3)]
    assert (np.array(runs)[:, :300] == "val").sum(axis=0).tolist() == [1] * 300
    assert {run[300] for run in runs} == {"test"}
    assert {"train", "val", "test"} == set(runs[0])
    with pytest.raises(UserError, match=r"data\.folds: the data have test and val splits of their own"):
        splits_of([*ids, "v"], [*CLASSES, "a", "a"], [*given, "val"], 0.1, 0.2, 0, 3, 0)


def archive(folder, *images, columns=None):
    columns = columns or [{}] * len(images)
    raw = [RawImage(*image, columns=values) for image, values in zip(images, columns, strict=True)]
    write_archive(folder, "folder", ["a", "b"], raw)
    return RawArchive(folder)


IMAGES = [
    ("unsplit", "a", "p1_0.png", b"0"),
    ("unsplit", "b", "p1_1.png", b"1"),
    ("unsplit", "a", "deep/p22_2.png", b"2"),
]


def test_a_group_is_the_first_group_or_the_whole_match_of_an_expression_in_the_path(tmp_path):
    raw = archive(tmp_path / "raw", *IMAGES)
    assert identify(raw, r"p(\d+)_") == ["1", "1", "22"]
    assert identify(raw, r"p\d+") == ["p1", "p1", "p22"]
    assert identify(raw, r"^[ab]/") == ["a/", "b/", "a/"]
    for group, image in ((r"deep", "a/p1_0.png"), (r"_1|(p22)", "a/p1_0.png"), (r"b/()", "a/p1_0.png")):
        with pytest.raises(UserError, match=f"finds nothing in {image}; name a group for every image"):
            identify(raw, group)


def test_a_group_is_a_column_of_the_table(tmp_path):
    columns = [{"eye": "left", "who": file[:2]} for _, _, file, _ in IMAGES]
    raw = archive(tmp_path / "raw", *IMAGES, columns=columns)
    assert identify(raw, "who") == ["p1", "p1", "de"]
    with pytest.raises(UserError, match=r"data\.group = whom: no column of the table \(eye, who\) and as a regular"):
        identify(raw, "whom")
    columns[1]["who"] = ""
    raw = archive(tmp_path / "holes", *IMAGES, columns=columns)
    with pytest.raises(UserError, match=r"data\.group = who: the column is empty for b/p1_1\.png; fill it in"):
        identify(raw, "who")


def test_a_group_in_two_of_the_sources_own_splits_is_refused(tmp_path):
    raw = archive(tmp_path / "raw", ("train", "a", "p1_0.png", b"0"), ("test", "a", "p1_1.png", b"1"))
    with pytest.raises(UserError, match="group p1 lies in two of the data's own splits, train and test; move"):
        identify(raw, r"p\d+")


def grouped(sizes, **changes):
    """Return {group: split} of {(group, class): images}, and what `missed_shares` says; 0.1 / 0.2 are asked."""
    rows = [pair for pair, size in sizes.items() for _ in range(size)]
    params = PARAMS.model_copy(update={"val_fraction": 0.1, "test_fraction": 0.2, "group": "g", **changes})
    groups, names = (list(column) for column in zip(*rows, strict=True))
    splits = assign_splits(groups, names, ["unsplit"] * len(rows), params)
    return dict(zip(groups, splits, strict=True)), missed_shares(splits, names, ["unsplit"] * len(rows), params)


def unequal(seed):
    names = [f"{name}{number}" for name in "abcd" for number in range(20)]
    sizes = np.minimum(np.random.default_rng(seed).pareto(1.1, 80) * 4 + 4, 150).astype(int).tolist()
    return {(name, name[0]): size for name, size in zip(names, sizes, strict=True)}


def count(splits, sizes, split, name=""):
    return sum(size for (group, of), size in sizes.items() if splits[group] == split and name in (of, ""))


@pytest.mark.parametrize("seed", range(10))
def test_groups_of_unequal_size_meet_the_shares_of_splits_and_of_classes(seed):
    sizes = unequal(seed)
    splits, _ = grouped(sizes, seed=seed)
    for split, share in (("test", 0.2), ("val", 0.1)):
        assert abs(count(splits, sizes, split) / sum(sizes.values()) - share) < 0.04  # by hash alone: up to 0.34
        for name in "abcd":
            total = sum(size for (_, of), size in sizes.items() if of == name)
            assert abs(count(splits, sizes, split, name) / total - share) < 0.13


@pytest.mark.parametrize("seed", range(10))
def test_an_added_image_or_group_moves_few_groups_and_none_of_other_classes(seed):
    sizes = unequal(seed)
    before, _ = grouped(sizes)
    for added in ({("a0", "a"): sizes["a0", "a"] + 1}, {("new", "a"): 8}):
        after, _ = grouped(sizes | added)
        moved = {group for group in before if before[group] != after[group]}
        assert len(moved) <= 4
        assert all(group.startswith("a") for group in moved)
    assert grouped(dict(reversed(sizes.items())))[0] == before


def test_no_release_moves_a_group_to_another_split():
    splits, _ = grouped({(name, name[0]): 1 + number % 7 for number, name in enumerate(IDS)})
    assert hashlib.sha256(" ".join(splits.values()).encode()).hexdigest()[:16] == "2a0e18902ed310e9"


def test_folds_of_groups_share_out_every_group_once_and_validate():
    sizes = {group: min(size, 12) for group, size in unequal(0).items()}
    runs = [grouped(sizes, folds=5, fold=fold)[0] for fold in range(5)]
    assert all(sum(run[group] == "test" for run in runs) == 1 for group in runs[0])
    for run in runs:
        assert 0.07 < count(run, sizes, "val") / sum(sizes.values()) < 0.13


def test_shares_that_groups_miss_are_told_with_figures():
    sizes = {**{(f"a{number}", "a"): 50 for number in range(3)}, **{(f"b{number}", "b"): 10 for number in range(10)}}
    splits, missed = grouped(sizes)
    assert [count(splits, sizes, split, "b") for split in ("train", "val", "test")] == [70, 10, 20]
    assert missed == [
        "test has 70 of 250 images, 20% asked",
        "val has 60 of 250 images, 10% asked",
        "test has 50 of 150 images of class a, 20% asked",
        "val has 50 of 150 images of class a, 10% asked",
    ]
    assert grouped({(f"{name}{number}", name): 10 for name in "ab" for number in range(10)})[1] == []
