"""A correction changes the label of the image that it names, whatever becomes of the file, and of no other."""

import hashlib
import json

import numpy as np
import pytest

from reprise.data.download.sources import encode_array
from reprise.data.formats.packed import load_metadata, load_split
from reprise.data.formats.raw import RawArchive, RawImage, write_archive
from reprise.data.prepare.corrections import HEADER, Correction, add_corrections, read_corrections
from reprise.data.prepare.prepare import preprocess
from reprise.repo.project import Project
from reprise.repo.runs import prepared_data
from reprise.runtime.errors import UserError
from tests.conftest import data_params, fresh_clone

LINE = ",".join(HEADER) + "\n"
CLASSES = ("cat", "dog", "=cow")
A, B = "a" * 64, "b" * 64


def encoded(number):
    return encode_array(np.full((8, 8), number, np.uint8))


def digest(number):
    return hashlib.sha256(encoded(number)).hexdigest()


def archive(folder, classes=CLASSES, skip=(), broken=()):
    """Write 20 images of each class, each with pixels of its own, but those to skip."""
    numbers = [number for number in range(20 * len(classes)) if number not in skip]
    named = [
        (classes[number // 20], f"{number}.pgm", b"?" if number in broken else encoded(number)) for number in numbers
    ]
    write_archive(folder / "raw", "folder", classes, [RawImage("unsplit", *each) for each in named])
    return folder / "raw"


def corrections(folder, *lines):
    path = folder / "corrections.csv"
    path.write_text(LINE + "".join(f"{line}\n" for line in lines))
    return path


def prepared(folder, raw, path=None):
    _, findings = preprocess(raw, folder, data_params(image_size=8, val_fraction=0.2, test_fraction=0.3), 1, path)
    labels = {}
    for split, part in {split: load_split(folder, split) for split in ("train", "val", "test")}.items():
        labels |= {name: (split, int(label)) for name, label in zip(part.ids, part.labels, strict=True)}
    return labels, findings


def test_only_what_is_named_changes_and_no_image_moves_to_another_split(tmp_path, capsys):
    raw = archive(tmp_path)
    before, _ = prepared(tmp_path / "before", raw)
    (cat, gone, *_), (other, *_) = ([name for name in before if before[name][0] == split] for split in ("test", "val"))
    changed = {cat: "'=cow", other: "dog", gone: "drop", "dog/22.pgm": "dog", "cat/99.pgm": "dog"}
    lines = [f"{name},{digest(int(name[4:-4]))},{label},,two" for name, label in changed.items()]
    after, findings = prepared(tmp_path / "after", raw, corrections(tmp_path, *lines))
    assert after | {gone: ("test", 0)} == before | {cat: ("test", 2), other: ("val", 1)}
    dropped = [{"id": gone, "split": "test", "reason": "corrections.csv: two"}]
    assert json.loads((tmp_path / "after/dropped.json").read_text()) == dropped
    counts, metadata = {"relabeled": 1, "dropped": 1}, load_metadata(tmp_path / "after")
    assert findings.metrics()["corrections"] == {"relabeled": 2, "dropped": 1, "gone": 1, "test": counts}
    assert findings.metrics()["dropped"] == {"corrupt": 0, "leaks": 0}
    assert (metadata.relabeled, metadata.dropped, metadata.test_corrections) == (2, 1, counts)
    assert "data/corrections.csv: 1 of these images are gone: cat/99.pgm; remove their lines" in capsys.readouterr().err


def test_relabeling_alone_keeps_the_digest_of_the_splits_and_what_changes_no_label_every_byte(tmp_path):
    raw, files, image = archive(tmp_path), {}, f"cat/3.pgm,{digest(3)}"
    seen = [f"{image},cat,me,seen", f"cat/gone.pgm,{A},dog,,"]
    for name, lines in {"before": None, "other": [f"x,{A},cow,,"], "same": seen, "after": [f"{image},dog,,"]}.items():
        prepared(tmp_path / name, raw, None if lines is None else corrections(tmp_path, *lines))
        files[name] = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert files["before"] == files["other"] == files["same"] != files["after"]
    assert load_metadata(tmp_path / "after").splits_sha256 == load_metadata(tmp_path / "before").splits_sha256


@pytest.mark.slow
def test_data_that_are_prepared_for_a_run_have_the_corrections_of_the_moment(tmp_path):
    root, ids = fresh_clone(tmp_path / "clone").path, {}
    for _ in range(2):
        folder = prepared_data(Project(root), data_params(image_size=8))
        train = load_split(folder, "train")
        ids[folder] = dict(zip(train.ids, train.labels.tolist(), strict=True))
        name = min(train.ids)  # a 0
        content = RawArchive(folder.parent / "raw").read(f"unsplit/{name}")
        corrections(root / "data", f"{name},{hashlib.sha256(content).hexdigest()},1,,")
    before, after = ids.values()
    assert after == before | {name: 1}


def test_an_unreadable_image_may_be_dropped_by_a_correction_and_is_an_error_otherwise(tmp_path):
    raw = archive(tmp_path, broken=[0])
    with pytest.raises(UserError, match=r"1 image cannot be read.*\n  cat/0.pgm: "):
        prepared(tmp_path / "before", raw, corrections(tmp_path))
    path = corrections(tmp_path, f"cat/0.pgm,{hashlib.sha256(b'?').hexdigest()},drop,,")
    assert len(prepared(tmp_path / "after", raw, path)[0]) == 59


def test_a_class_that_corrections_leave_nothing_to_train_on_is_named(tmp_path):
    lines = [f"cat/{number}.pgm,{digest(number)},dog,," for number in range(20)]
    with pytest.raises(UserError, match="with 20 images dropped or relabeled, none is left of class cat in train"):
        prepared(tmp_path / "out", archive(tmp_path), corrections(tmp_path, *lines))


@pytest.mark.parametrize(
    ("classes", "line", "message"),
    [
        (CLASSES, f"cat/3.pgm,{digest(3)},cow,,", r"no class 'cow'; the data have =cow, and `drop`"),
        (CLASSES, f"cat/3.pgm,{digest(3)},dog,,\ncat/gone.pgm,{A},cow,,", r"no class 'cow'; the data have =cow, and"),
        (CLASSES, f"cat/3.pgm,{digest(4)},dog,,", r"cat/3.pgm has another content .*; correct or remove these lines"),
        (CLASSES, f"cat/old.pgm,{digest(3)},dog,,", r"cat/old.pgm is called cat/3.pgm now; correct or remove"),
        (("cat", "drop"), f"cat/3.pgm,{digest(3)},drop,,", "`drop` is a class of these data, too"),
    ],
)
def test_what_fits_no_image_is_refused_and_labels_nothing(tmp_path, classes, line, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "out", archive(tmp_path, classes), corrections(tmp_path, line))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "its first line has to be id,sha256,label,by,why"),
        (f"{LINE}a,{A},cat\n", "line 2: a line has 5 values"),
        (f"{LINE}a,{A[1:]},cat,,\n", "line 2: a line has 5 values"),
        (f"{LINE}<<<<<<< HEAD\na,{A},cat,,\n", "line 2: a line has 5 values"),
        (f"{LINE}a,{A},cat,,\na,{A},cat,,\n", "line 3: a is cat, above a, the same image, is cat; keep one"),
        (f"{LINE}a,{A},cat,,\nb,{A},drop,,\nc,{A},dog,,\n", "line 4: c is dog, above a, the same image, is cat"),
        (f'{LINE}a,{A},"cat\n', "no CSV in UTF-8"),
        (f"{LINE}a,{A},cat,,{'x' * 200_000}\n", "no CSV in UTF-8 .*field larger than"),
        (f"{LINE}ä,{A},cat,,\n", "no CSV in UTF-8"),
    ],
)
def test_what_is_no_table_of_corrections_is_refused_with_its_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "corrections.csv").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_corrections(tmp_path / "corrections.csv")


def test_lines_as_windows_writes_them_and_cells_that_a_spreadsheet_would_compute_come_back(tmp_path):
    path = corrections(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + f"{LINE}z,{B},cat,,\n".replace("\n", "\r\n").encode())
    one = Correction("=a/1.png", A, "-1", "+me", "=HYPERLINK(1)\nand, more")
    add_corrections(path, [one])
    assert list(read_corrections(path).values()) == [one, Correction("z", B, "cat")]
    assert "\n'=a/1.png,aaa" in path.read_text()
    before = path.read_bytes()
    refused = "/corrections.csv as it would be, line 3: other is cat, above =a/1.png, the same image, is -1"
    with pytest.raises(UserError, match=refused):
        add_corrections(path, [Correction("other", A, "cat")])
    assert path.read_bytes() == before
