"""`reprise labels` finds labels that are wrong, without a model that has seen them, and changes none by itself."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from reprise.data.prepare.corrections import read_corrections
from reprise.labels.report import HEADER, Doubt, read_doubts
from reprise.runtime.errors import UserError
from reprise.runtime.tables import write_csv
from tests.conftest import TINY, fresh_clone

EACH, LEVELS = 40, {"dark": 60, "light": 190}


def project(path, *splits):
    """Return a clone with images of two classes, two of each in the other's folder: {their ids: the right class}."""
    clone, random, wrong = fresh_clone(path), np.random.default_rng(0), {}
    for split in splits:
        for label, (name, level) in enumerate(LEVELS.items()):
            for number in range(EACH):
                folder = list(LEVELS)[1 - label] if number < 2 else name
                file = path / "data/own" / split / folder / f"{name}-{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(level - 50, level + 50, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(file)
                if folder != name:
                    wrong[file.relative_to(path / "data/own").as_posix()] = name
    clone.set(*TINY, "data.name=folder", "data.test_fraction=0.2", "train.epochs=10", "train.batch_size=8")
    clone.commit()
    return clone, wrong


def labels(clone, *arguments):
    """Return (exit code, what was said in the end)."""
    done = clone.run("python", "-m", "reprise", "labels", *arguments, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_wrong_labels_are_found_once_and_corrected_when_somebody_accepts_them(tmp_path):
    clone, wrong = project(tmp_path / "clone", ".")
    code, said = labels(clone, "--folds", "2")
    assert code == 0, said
    assert "80 images: 4 seem to be of another class" in said
    file = clone.path / "runs/labels/labels.csv"
    first = file.read_bytes()
    rows = read_doubts(file)
    assert {row.id: row.suggested for row in rows[:4]} == wrong
    assert [float(row.score) for row in rows] == sorted(float(row.score) for row in rows)
    assert "other class" in rows[0].why
    noise = list(csv.DictReader(io.StringIO((clone.path / "runs/labels/noise.csv").read_text())))
    assert {(row["label"], row["really"], row["share"]) for row in noise} == {
        ("dark", "light", "0.05"),
        ("light", "dark", "0.05"),
    }
    assert clone.clean()
    assert {"labels-0-of-2", "labels-1-of-2"} == set(clone.run("dvc", "exp", "list", "--name-only").stdout.split())

    (clone.path / "runs/labels/labels.csv").unlink()
    assert labels(clone, "--folds", "2")[0] == 0
    assert file.read_bytes() == first
    logs = [(clone.path / f"runs/labels-{fold}-of-2.log").read_text() for fold in range(2)]
    assert not any("epoch" in log for log in logs)  # nothing was trained twice

    assert labels(clone, "--accept", "3")[0] == 0
    assert labels(clone, "--folds", "2") == (1, said := labels(clone, "--folds", "2")[1])
    assert "uncommitted changes (data/corrections.csv): the folds are experiments of the last commit" in said
    assert "1 of 1 suggestions" in labels(clone, "--accept", "all")[1]
    corrected = read_corrections(clone.path / "data/corrections.csv")
    assert {one.id: one.label for one in corrected.values()} == wrong
    assert {one.by for one in corrected.values()} == {"Test"}
    clone.commit()
    clone.run("dvc", "repro", "preprocess")
    metrics = json.loads((clone.path / "metrics/data.json").read_text())
    assert metrics["corrections"] == {"relabeled": 4, "dropped": 0, "gone": 0}


@pytest.mark.slow
def test_data_with_a_test_split_of_their_own_are_examined_whole(tmp_path):
    clone, wrong = project(tmp_path / "clone", "train", "test")
    code, said = labels(clone, "--folds", "2")
    assert code == 0, said
    assert "160 images: 8 seem to be of another class" in said
    suggested = {row.id: row.suggested for row in read_doubts(clone.path / "runs/labels/labels.csv")}
    assert {name: label for name, label in suggested.items() if label} == wrong


@pytest.mark.slow
def test_a_fold_that_cannot_be_trained_is_one_line_and_leaves_no_report(tmp_path):
    clone, _ = project(tmp_path / "clone", ".")
    assert "fold 0 of 1 failed: error: " in (said := labels(clone, "--folds", "1")[1])
    assert "data.folds" in said
    file = clone.path / "data/own/rare/1.png"
    file.parent.mkdir()
    Image.fromarray(np.full((16, 16), 120, np.uint8)).save(file)
    code, said = labels(clone, "--folds", "2")
    assert code == 1
    assert "fold 0 of 2 failed: error: too few images to give each of 3 splits one: class rare (1)" in said
    assert not (clone.path / "runs/labels").exists()


def test_a_table_of_another_version_is_not_accepted(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="not there, or not written by this version; `reprise labels` writes it"):
        read_doubts(path)
    row = Doubt("=a.png", "-1", "+1", "0.1", "other class", "a" * 64)
    write_csv(path, HEADER, [row])
    assert read_doubts(path) == [row]
    write_csv(path, HEADER, [row[:3]])
    with pytest.raises(UserError, match="not written by this version"):
        read_doubts(path)
