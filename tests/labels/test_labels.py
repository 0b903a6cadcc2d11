"""`reprise labels` finds labels that are wrong, without a model that has seen them, and changes none by itself."""

import hashlib
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reprise.data.formats.raw import RawArchive, RawImage, image_id, write_archive
from reprise.data.prepare.corrections import read_corrections
from reprise.labels.report import HEADER, doubts, read_doubts
from reprise.labels.run import Examined
from reprise.labels.scores import Scores
from reprise.runtime.tables import read_csv, write_csv
from tests.conftest import TINY, fresh_clone

LEVELS = {"dark": 60, "light": 190}


def project(path, *splits, own="data/own"):
    """Return a clone with images of two classes, two of each in the other's folder: {their ids: the right class}.

    own: the folder, of which Git has the images 20 to 29 of each class, or, if it is data/own, none.
    """
    clone, random, wrong = fresh_clone(path), np.random.default_rng(0), {}
    for split, (name, level), number in itertools.product(splits, LEVELS.items(), range(40)):
        folder = (LEVELS.keys() - {name}).pop() if number < 2 else name
        file = path / own / split / folder / f"{name}-{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(level - 50, level + 50, (16, 16), dtype=np.uint8)).save(file)
        if folder != name:
            wrong[file.relative_to(path / own).as_posix()] = name
    (path / "data/.gitignore").write_text("*-?.png\n*-[13]?.png\n")
    clone.set(*TINY, "data.name=folder", f"data.path={own}", "data.test_fraction=0.2")
    clone.set("train.epochs=10", "train.batch_size=8")
    clone.commit()
    return clone, wrong


def labels(clone, *arguments):
    """Return what the command says; if it fails, its error."""
    done = clone.run("python", "-m", "reprise", "labels", *arguments, check=False)
    assert "Traceback" not in done.stderr
    return done.stderr if done.returncode else done.stdout


@pytest.mark.slow
def test_wrong_labels_are_found_once_and_corrected_when_somebody_accepts_them(tmp_path):
    clone, wrong = project(tmp_path / "clone", ".", own="data/mine")
    assert "80 images, 95.0% as the models say: 4 seem to be of another class" in labels(clone, "--folds", "2")
    file = clone.path / "runs/labels/labels.csv"
    first = file.read_bytes()
    assert {row.id: row.suggested for row in read_doubts(file)[:4]} == wrong
    assert len(read_csv(clone.path / "runs/labels/noise.csv")) == 3  # a header and both directions
    assert "](other-class.svg)" in file.with_name("labels.md").read_text() and clone.clean()
    assert {"labels-0-of-2", "labels-1-of-2"} == set(clone.run("dvc", "exp", "list", "--name-only").stdout.split())

    assert ": 4 seem" in labels(clone, "--folds", "2")
    assert file.read_bytes() == first
    assert "epoch" not in "".join(log.read_text() for log in clone.path.glob("runs/labels-*.log"))  # not trained again

    assert "no raw data there; run `dvc repro download`" in labels(clone, "--accept", "3")  # to hold the list against
    clone.run("dvc", "repro", "download")
    clone.commit()
    assert "3 of 4 suggestions" in labels(clone, "--accept", "3")
    assert "uncommitted changes (data/corrections.csv): the folds are" in labels(clone, "--folds", "2")
    assert "1 of 1 suggestions" in labels(clone, "--accept", "all")
    corrected = read_corrections(clone.path / "data/corrections.csv")
    assert {one.id: (one.label, one.by) for one in corrected.values()} == {key: (wrong[key], "Test") for key in wrong}
    clone.commit()
    clone.run("dvc", "repro", "preprocess")
    assert json.loads((clone.path / "metrics/data.json").read_text())["corrections"]["relabeled"] == 4


def test_each_reason_alone_makes_a_doubt_and_an_image_that_is_decided_is_none(tmp_path):
    likeliest = {"usual": 0, "outlier": 0, "unlike": 2, "twin": 0, "other": 1, "decided": 1, "b": 1}
    images = [RawImage("unsplit", "b" if name == "b" else "a", name, b"") for name in likeliest]
    write_archive(tmp_path / "raw", "own", "abc", images)
    archive, twins = RawArchive(tmp_path / "raw"), {"a/twin": "b/b", "a/decided": "b/b"}
    scores = Scores(np.array([0] * 6 + [1]), 0.85 * np.eye(3)[[*likeliest.values()]] + 0.05)
    outlying = np.isin([*likeliest], ["outlier", "decided"])
    found = Examined(archive, SimpleNamespace(classes="abc"), list(archive.members), scores, outlying, twins)
    assert "a/decided" in {row.id for row in doubts(found, ())}
    rows = doubts(found, {"a/decided"})
    assert [row.id + row.suggested for row in rows] == ["a/unlike", "a/otherb", "a/outlier", "a/twin"]
    reasons = ["nothing like any class", "other class", "outlier", "near-duplicate with another label: b/b"]
    assert [row.why for row in rows] == reasons


def test_many_suggestions_of_weak_models_are_refused_and_those_of_test_images_named(reproduced):
    folder, data = reproduced.path / "runs/labels", reproduced.path / "data"
    archive, test = RawArchive(data / "raw"), json.loads((data / "processed/test_ids.json").read_text())
    content = {image_id(member): hashlib.sha256(archive.read(member)).hexdigest() for member in archive.members}
    ids = [*test[:9], *[name for name in content if name not in test][:13]]
    folder.mkdir(parents=True)
    changed, other = {test[0]: "0" * 64}, {"cat/1.png": content[test[0]]}
    for wrong, options in ((changed, ["--accept", "1"]), (other, ["--review", "--port", "0"]), ({}, [])):
        rows = [[name, "0", "1", "0.1", "", (content | wrong)[name], ""] for name in dict.fromkeys([*ids, *wrong])]
        write_csv(folder / "labels.csv", HEADER, rows)
        for name in wrong:
            assert f"runs/labels is of other data than data/raw: {name}; `dvc repro`" in labels(reproduced, *options)
    for agreed, most, said, taken in (0.899, "10", ": 9 of", 10), (0.899, "11", "89.9%", 10), (0.9, "all", "", 22):
        (folder / "summary.json").write_text(json.dumps({"agreed": agreed}))
        assert said in reproduced.run("python", "-m", "reprise", "labels", "--accept", most, check=False).stderr
        assert read_corrections(data / "corrections.csv").keys() == set(ids[:taken])


@pytest.mark.slow
@pytest.mark.parametrize("splits", [["train", "test"], ["train", "val"], ["train", "val", "test"]], ids="-".join)
def test_data_with_splits_of_their_own_are_examined_whole_but_for_train_if_nothing_is_left_to_fold(tmp_path, splits):
    clone, wrong = project(tmp_path / "clone", *splits)
    said = labels(clone, "--folds", "2")
    assert "160 images, " in said and ("80 more were left out, or every model has trained" in said) == (len(splits) > 2)
    found = {row.id: row.suggested for row in read_doubts(clone.path / "runs/labels/labels.csv") if row.suggested}
    assert found.items() <= wrong.items()
    assert {name.split("/")[0] for name in found} == {*splits[-2:]}


@pytest.mark.slow
def test_a_fold_that_cannot_be_trained_is_one_line_and_leaves_no_report(tmp_path):
    clone, _ = project(tmp_path / "clone", ".")
    assert "not there, or not written by this version" in labels(clone, "--accept", "all")
    assert "fold 1 of 1 failed: params.yaml: data.folds" in labels(clone, "--folds", "1")
    file = clone.path / "data/own/rare/1.png"
    file.parent.mkdir()
    Image.fromarray(np.full((16, 16), 120, np.uint8)).save(file)
    assert "fold 1 of 2 failed: too few images to give each of 3 splits one" in labels(clone, "--folds", "2")
    assert not (clone.path / "runs/labels").exists()
