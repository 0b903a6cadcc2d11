"""Folders that plainly are splits become splits, above or below the classes; what may be either is refused."""

import pytest

from reprise.data.download.layouts import lay_out
from reprise.data.download.split_names import plain_split
from reprise.runtime.errors import UserError


def placed(*names):
    return {(image.split, image.class_name, image.file_name) for image in lay_out(names, lambda *_: b"", "own")[0]}


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "TRAIN", "Training", "training_set", "TrainingSet", "train-images", "train2017"]),
        ("val", ["val", "Valid", "validation", "dev", "val_data", "Validation Set", "valimages", "is_valid"]),
        ("test", ["test", "Testing", "test_set", "test1", "holdout", "TestImages", "testdata", "testset"]),
        ("", ["trainer", "invalid", "tests", "latest", "device", "eval"]),
        ("", ["train_test", "bullet_train", "test tube", "x"]),
    ],
)
def test_a_name_is_a_split_or_not(split, names):
    assert {name: plain_split(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("training_set", "test_set", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("chest_xray_train", "chest_xray_val", "val"),
        ("train2017", "holdout", "test"),
        ("top/Train", "top/dev", "val"),
    ],
)
def test_split_folders_by_any_name_are_respected(train, other, split):
    found = placed(f"{train}/cat/1.png", f"{train}/dog/deep/1.png", f"{other}/cat/1.png", f"{other}/dog/1.png")
    expected = {("train", "cat", "1.png"), ("train", "dog", "deep/1.png"), (split, "cat", "1.png")}
    assert found == expected | {(split, "dog", "1.png")}


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "valid"), ("train_set", "test_set")])
def test_split_folders_below_the_classes_are_respected(names):
    found = placed(*(f"{label}/{name}/1.png" for label in ("cat", "dog") for name in names))
    assert {split for split, _, _ in found} == {plain_split(name) for name in names}
    assert {label for _, label, _ in found} == {"cat", "dog"}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train/1.png", "plane/1.png", "bus/1.png"], {"train", "plane", "bus"}),
        (["bullet_train/1.png", "test_tube/1.png", "bus/1.png"], {"bullet_train", "test_tube", "bus"}),
        (["valid/1.png", "invalid/1.png"], {"valid", "invalid"}),
        (["dev_board/a/1.png", "test_strip/b/1.png"], {"dev_board", "test_strip"}),
        (["street/train/1.png", "street/bus/1.png", "road/1.png"], {"street", "road"}),
    ],
)
def test_classes_that_are_called_like_splits_are_classes(names, classes):
    assert {label for _, label, _ in placed(*names)} == classes


@pytest.mark.parametrize(
    ("classes", "below", "named"),
    [
        (("imagesTr", "imagesTs"), ("cat/x", "dog/y"), False),
        (("imagesTr", "imagesTs"), ("cat", "dog"), True),
        (("fold0", "fold1", "fold2"), ("cat", "dog", "emu"), True),
        (("cat", "dog"), ("all",), False),
    ],
)
def test_classes_of_the_same_folders_may_be_splits_and_are_named(classes, below, named):
    names = [f"{name}/{folder}/1.png" for name in classes for folder in below]
    names += ["imagesTr/emu/1.png"] * (not named)
    notes = lay_out(names, lambda *_: b"", "own")[1]
    said = f"the classes of own, {', '.join(classes)}, have the same folders, {', '.join(below)}; if these are the"
    assert [note.startswith(said) for note in notes] == [True] * named


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/cat.0.jpg", "train/dog.0.jpg", "test/1.jpg"], "own/test/1.jpg: an image outside a class folder"),
        (["train/1.png", "test/1.png"], "if test or train is a class, rename it"),
        (["train/a/1.png", "test/1.png"], "own/test/1.png: an image outside a class folder"),
        (["train/a/1.png", "test/a/1.png", "1.png"], "own/1.png: an image outside a class folder"),
        (["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"], "own/seg_pred lies beside own/seg_test, a split"),
        (["Training/a/1.png", "train/a/1.png", "Testing/a/1.png"], "Training and train are the same split; merge them"),
        (["a/train/1.png", "a/test/1.png", "b/1.png"], "own/b/1.png: test and train are splits below classes, but not"),
        (["x/train/a/1.png", "x/test/a/1.png", "y/train/a/1.png"], "are splits below classes, but not here"),
        (["a/train/1.png", "a/test/1.png", "b/test/1.png"], "class b is in test but not in train"),
        (["test_set/a/1.png", "test_set/b/1.png"], "own has split folders but no train folder"),
    ],
)
def test_what_may_be_a_split_or_a_class_is_refused(names, said):
    with pytest.raises(UserError) as caught:
        placed(*names)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
