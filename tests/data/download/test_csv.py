"""A CSV is read as it is meant, whatever program wrote its paths and columns; what is not clear is refused."""

import pytest

from reprise.data.download.layouts import lay_out
from reprise.runtime.errors import UserError


def placed(table, *names):
    images = lay_out([*names, "labels.csv"], lambda name, most: table.encode(), "own")[0]
    return {image.name: image for image in images}


@pytest.mark.parametrize(
    "written",
    [
        "img\\{}.png", ".\\img\\{}.png", "/home/me/own/img/{}.png", "C:\\data\\img\\{}.png", "//nas/share/img/{}.png",
        "own/img/{}.png", "../own/img/{}.png", "img/{}", "img\\{}", "{}", "/home/me/img/{}", " img/{}.png ",
    ],
)  # fmt: skip
def test_paths_of_any_program_find_their_images(written):
    table = "filename,label\n" + "".join(f"{written.format(n)},{'ab'[n % 2]}\n" for n in range(4))
    names = [f"img/{n}.png" for n in range(4)]
    assert {name: image.class_name for name, image in placed(table, *names).items()} == dict(
        zip(names, "abab", strict=True)
    )


def test_a_path_never_finds_an_image_of_another_folder():
    with pytest.raises(UserError, match=r"line 2: train/1\.png is not among the images"):
        placed("path,label\ntrain/1.png,a\ntrain/2.png,b\n", "test/1.png", "test/2.png")
    with pytest.raises(UserError, match=r"line 3: 1 names 2 images; write the path"):
        placed("path,label\n2,a\n1,b\n", "x/1.png", "x/2.png", "y/1.jpg")


@pytest.mark.parametrize("file", ["image_id", "file", "path", "ImageID", "id", "Image Name", "id_code", "img"])
@pytest.mark.parametrize("label", ["class", "target", "label", "Class Name", "category", "class_id"])
def test_common_names_of_columns_are_known(file, label):
    images = placed(f"{file},{label}\n1.png,a\n2.png,b\n", "1.png", "2.png")
    assert [image.class_name for image in images.values()] == ["a", "b"]


def test_a_doubtful_column_gives_way_to_a_sure_one():
    images = placed("image_id,filename,id,label\nx,1.png,7,a\ny,2.png,8,b\n", "1.png", "2.png")
    assert images["1.png"].columns == {"image_id": "x", "id": "7"}


@pytest.mark.parametrize(
    ("column", "values", "splits"),
    [
        ("dataset", ("rosendahl", "vidir"), {"unsplit"}),
        ("set", ("A", "B"), {"unsplit"}),
        ("dataset", ("training", "Testing"), {"train", "test"}),
        ("Subset", ("train", "hold_out_test"), None),
        ("partition", ("TRAIN", "dev"), {"train", "val"}),
        ("Usage", ("Training", "Testing"), {"train", "test"}),
        ("vehicle", ("train", "bus"), {"unsplit"}),
    ],
)
def test_a_column_is_the_split_only_if_it_holds_splits(column, values, splits):
    table = f"image,label,{column}\n1.png,a,{values[0]}\n2.png,a,{values[1]}\n"
    if splits is None:  # a slip is no other kind of column
        with pytest.raises(UserError, match="line 3: the split 'hold_out_test' is none of train, val, test"):
            placed(table, "1.png", "2.png")
        return
    images = placed(table, "1.png", "2.png")
    assert {image.split for image in images.values()} == splits
    assert images["2.png"].columns == ({column: values[1]} if splits == {"unsplit"} else {})


def test_a_split_in_0_and_1_is_refused():
    with pytest.raises(UserError, match=r"a split in 0 and 1 \(is_valid\); write one column split of train, val, test"):
        placed("image,label,is_valid\n1.png,a,False\n2.png,b,True\n", "1.png", "2.png")


@pytest.mark.parametrize("folder", ["{}", "images/{}", "{}/deep", "cat/{}", "seg_{0}/seg_{0}"])
def test_without_a_column_for_it_the_split_is_that_of_the_folders_wherever_they_are(folder):
    train, test = folder.format("train"), folder.format("test")
    images = placed(f"path,label\n{train}/1.png,a\n{test}/2.png,a\n", f"{train}/1.png", f"{test}/2.png", "x/3.png")
    assert {name: image.split for name, image in images.items()} == {f"{train}/1.png": "train", f"{test}/2.png": "test"}


def test_images_in_no_split_folder_beside_others_are_refused():
    names = ["Training/1.png", "Training/2.png", "Testing/1.png", "extra/3.png"]
    table = "path,label\nTraining/1.png,a\nTraining/2.png,b\nTesting/1.png,a\n"
    of_training = placed(table.replace("Testing/1", "Training/3"), "Training/3.png", *names)
    assert {image.split for image in of_training.values()} == {"unsplit"}
    said = r"line 5: extra/3\.png lies in none, or two, of the split folders Testing and Training; add a column split"
    with pytest.raises(UserError, match=said):
        placed(f"{table}extra/3.png,b\n", *names)


ONE_HOT = "image,MEL,NV,age,BKL\n1.png,1.0,0.0,30,0.0\n2.png,0.0,1.0,40,0.0\n3.png,0,0,50,1\n"


def test_classes_in_columns_of_0_and_1():
    images = placed(ONE_HOT, "1.png", "2.png", "3.png")
    assert [image.class_name for image in images.values()] == ["MEL", "NV", "BKL"]
    assert images["3.png"].columns == {"age": "50"}


@pytest.mark.parametrize(("line", "count"), [("4.png,1,1,3,0", 2), ("4.png,0,0,3,0", 0)])
def test_an_image_of_two_classes_or_none_is_refused(line, count):
    with pytest.raises(UserError, match=f"line 5: {count} of the columns MEL, NV, BKL are 1"):
        placed(f"{ONE_HOT}{line}\n", *(f"{n}.png" for n in range(1, 5)))


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("1", "1.0", "1 and 1.0"),
        ("01", "1", "01 and 1"),
        ("cat", "Cat", "Cat and cat"),
        ("a  b", "a b", "a  b and a b"),
        ("caf\u00e9", "cafe\u0301", r"'cafe\u0301' and 'caf\xe9'"),
        ("STRASSE", "straße", "STRASSE and straße"),
    ],
)
def test_labels_that_differ_only_in_how_they_are_written_are_refused(one, other, shown):
    with pytest.raises(UserError) as caught:
        placed(f"image,label\n1.png,{one}\n2.png,{other}\n", "1.png", "2.png")
    assert f"the classes {shown} differ only in case, accents, blanks, or as 1 and 1.0; rename one" in str(caught.value)


def test_numbers_that_are_not_equal_are_different_classes():
    images = placed("image,label\n1.png,1.1\n2.png,1.10\n3.png,10\n4.png,1\n", *(f"{n}.png" for n in range(1, 5)))
    assert {image.class_name for image in images.values()} == {"1.1", "1.10", "10", "1"}
