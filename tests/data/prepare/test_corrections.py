"""A correction changes the label of the image that it names, whatever becomes of the file, and of no other."""

import hashlib
import json

import numpy as np
import pytest

from reprise.data.download.sources import encode_array
from reprise.data.formats.packed import load_metadata, load_split
from reprise.data.formats.raw import RawArchive, RawImage, write_archive
from reprise.data.prepare.corrections import HEADER, Correction, add_corrections, apply_corrections, read_corrections
from reprise.data.prepare.prepare import preprocess
from reprise.runtime.errors import UserError
from tests.conftest import data_params

LINE = ",".join(HEADER) + "\n"
CLASSES = ("cat", "dog", "=cow")
A, B = "a" * 64, "b" * 64


def encoded(number):
    return encode_array(np.full((8, 8), number, np.uint8))


def digest(number):
    return hashlib.sha256(encoded(number)).hexdigest()


def archive(folder, classes=CLASSES, each=20, skip=(), rename=None):
    """Write each image with pixels of its own; rename: {number: file name}."""
    images = []
    for number in set(range(each * len(classes))) - set(skip):
        name = (rename or {}).get(number, f"{number}.pgm")
        images.append(RawImage("unsplit", classes[number // each], name, encoded(number)))
    write_archive(folder / "raw", "folder", classes, images)
    return folder / "raw"


def corrections(folder, *lines):
    path = folder / "corrections.csv"
    path.write_text(LINE + "".join(f"{line}\n" for line in lines))
    return path


def prepared(folder, raw, path=None, **options):
    options = {"image_size": 8, "val_fraction": 0.2, "test_fraction": 0.3} | options
    _, findings = preprocess(raw, folder, data_params(**options), 1, path)
    labels = {}
    for split in ("train", "val", "test"):
        part = load_split(folder, split)
        labels |= {name: (split, int(label)) for name, label in zip(part.ids, part.labels, strict=True)}
    return labels, findings


def test_only_what_is_named_changes_and_no_image_moves_to_another_split(tmp_path):
    raw = archive(tmp_path)
    before, _ = prepared(tmp_path / "before", raw)
    path = corrections(
        tmp_path,
        f"cat/3.pgm,{digest(3)},'=cow,me,looks so",
        f"dog/21.pgm,{digest(21)},drop,me,two animals",
        f"dog/22.pgm,{digest(22)},dog,me,it is",
    )
    after, findings = prepared(tmp_path / "after", raw, path)
    assert after == {name: place for name, place in before.items() if name != "dog/21.pgm"} | {
        "cat/3.pgm": (before["cat/3.pgm"][0], 2)
    }
    dropped = json.loads((tmp_path / "after/dropped.json").read_text())
    split = before["dog/21.pgm"][0]
    assert dropped == [{"id": "dog/21.pgm", "split": split, "reason": "corrections.csv: two animals"}]
    assert findings.metrics()["corrections"] == {"relabeled": 1, "dropped": 1, "gone": 0}
    assert findings.metrics()["dropped"] == {"corrupt": 0, "leaks": 0}
    assert (load_metadata(tmp_path / "after").relabeled, load_metadata(tmp_path / "after").dropped) == (1, 1)


def test_relabeling_alone_keeps_the_digest_of_the_splits_and_a_header_alone_every_byte(tmp_path):
    raw = archive(tmp_path)
    prepared(tmp_path / "before", raw)
    prepared(tmp_path / "empty", raw, corrections(tmp_path))
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "empty" / file.name).read_bytes() == file.read_bytes()
    prepared(tmp_path / "after", raw, corrections(tmp_path, f"cat/3.pgm,{digest(3)},dog,,"))
    assert load_metadata(tmp_path / "after").splits_sha256 == load_metadata(tmp_path / "before").splits_sha256


def test_an_unreadable_image_may_be_dropped_by_a_correction_and_is_an_error_otherwise(tmp_path):
    images = [RawImage("unsplit", CLASSES[n // 20], f"{n}.pgm", encoded(n) if n else b"?") for n in range(60)]
    write_archive(tmp_path / "raw", "folder", CLASSES, images)
    with pytest.raises(UserError, match=r"1 image cannot be read.*\n  cat/0.pgm: "):
        prepared(tmp_path / "before", tmp_path / "raw", corrections(tmp_path))
    path = corrections(tmp_path, f"cat/0.pgm,{hashlib.sha256(b'?').hexdigest()},drop,,")
    assert len(prepared(tmp_path / "after", tmp_path / "raw", path)[0]) == 59


def test_a_class_that_corrections_leave_nothing_to_train_on_is_named(tmp_path):
    lines = [f"cat/{number}.pgm,{digest(number)},dog,," for number in range(20)]
    with pytest.raises(UserError, match="with 20 images dropped or relabeled, none is left of class cat in train"):
        prepared(tmp_path / "out", archive(tmp_path), corrections(tmp_path, *lines))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"cat/3.pgm,{digest(3)},cow,,", r"no class 'cow'; the data have =cow, and `drop`"),
        (f"cat/3.pgm,{digest(4)},dog,,", r"cat/3.pgm has another content .*; correct or remove these lines"),
        (f"cat/old.pgm,{digest(3)},dog,,", r"cat/old.pgm is called cat/3.pgm now; correct or remove"),
    ],
)
def test_what_fits_no_image_is_refused_and_labels_nothing(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "out", archive(tmp_path), corrections(tmp_path, line))
    assert not (tmp_path / "out").exists()


def test_a_corrected_image_that_is_gone_is_named_and_counted(tmp_path, capsys):
    path = corrections(tmp_path, f"cat/3.pgm,{digest(3)},dog,,", f"cat/4.pgm,{digest(4)},dog,,")
    labels, findings = prepared(tmp_path / "out", archive(tmp_path, skip=[3]), path)
    assert labels["cat/4.pgm"][1] == 1
    assert findings.metrics()["corrections"] == {"relabeled": 1, "dropped": 0, "gone": 1}
    assert "data/corrections.csv: the data have no longer cat/3.pgm; remove these 1 lines" in capsys.readouterr().err


def test_drop_is_refused_where_a_class_has_that_name(tmp_path):
    raw = RawArchive(archive(tmp_path, classes=("drop", "dog")))
    with pytest.raises(UserError, match="`drop` is a class of these data, too"):
        apply_corrections(corrections(tmp_path, f"dog/21.pgm,{digest(21)},drop,,"), raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "its first line has to be id,sha256,label,by,why"),
        ("id;sha256;label;by;why\n", "its first line has to be"),
        (f"{LINE}a,{A},cat\n", "line 2: a line has 5 values"),
        (f"{LINE}a,{A[1:]},cat,,\n", "line 2: a line has 5 values"),
        (f"{LINE}a,{A},,,\n", "line 2: a line has 5 values"),
        (f"{LINE}<<<<<<< HEAD\na,{A},cat,,\n", "line 2: a line has 5 values"),
        (f"{LINE}a,{A},cat,,\na,{A},cat,,\n", "line 3: a is cat, above a, the same image, is cat; keep one"),
        (f"{LINE}a,{A},cat,,\nb,{A},drop,,\nc,{A},dog,,\n", "line 4: c is dog, above a, the same image, is cat"),
        (f'{LINE}a,{A},"cat\n', "no CSV in UTF-8"),
        (f"{LINE}a,{A},cat,,{'x' * 200_000}\n", "no CSV in UTF-8 .*field larger than"),
        (f"{LINE}ä,{A},cat,,\n".encode("latin-1"), "no CSV in UTF-8"),
    ],
)
def test_what_is_no_table_of_corrections_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "corrections.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_corrections(path)


def test_a_missing_file_is_refused_and_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="its first line has to be"):
        read_corrections(tmp_path / "corrections.csv")


def test_lines_as_windows_writes_them_and_cells_that_a_spreadsheet_would_compute_come_back(tmp_path):
    path = corrections(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + f"{LINE}z,{B},cat,,\n".replace("\n", "\r\n").encode())
    one = Correction("=a/1.png", A, "-1", "+me", "=HYPERLINK(1)\nand, more")
    add_corrections(path, [one])
    assert list(read_corrections(path).values()) == [one, Correction("z", B, "cat")]
    assert "\n'=a/1.png,aaa" in path.read_text()
    before = path.read_bytes()
    with pytest.raises(UserError, match="the same image, is -1"):
        add_corrections(path, [Correction("other", A, "cat")])
    assert path.read_bytes() == before


def test_a_hundred_thousand_corrections_are_read_in_seconds(tmp_path):
    lines = [f"{n},{hashlib.sha256(b'%d' % n).hexdigest()},cat,," for n in range(100_000)]
    assert len(read_corrections(corrections(tmp_path, *lines))) == 100_000
