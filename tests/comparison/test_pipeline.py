"""From `dvc repro` to the verdict: a baseline, a real improvement, another seed, a regression planted in one class."""

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY

PLANTED = "3"


def compared(workspace, *arguments, check=True):
    done = workspace.run("python", "-m", "reprise", "compare", *arguments, "--out", "runs/out", check=check)
    return done, (workspace.path / "runs/out/report.md").read_text()


def answer(workspace, branch, change):
    """Rewrite what the model said (rows of id, label, predicted) and hand it to DVC as evaluate's result."""
    workspace.run("git", "checkout", "--quiet", "-b", branch, "better")
    workspace.run("dvc", "checkout", "--quiet")
    path = workspace.path / "data/predictions.csv"
    header, *rows = csv.reader(io.StringIO(path.read_text()))
    change(rows)
    path.unlink()  # it may be a link into the cache
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    workspace.run("dvc", "commit", "--force", "evaluate")
    workspace.commit()


def another_seed(rows):
    """Be wrong on 20 others."""
    right, wrong = ([row for row in rows if (row[1] == row[2]) == is_right][:20] for is_right in (True, False))
    for one, other in zip(right, wrong, strict=True):
        one[2], other[2] = str((int(one[1]) + 1) % 10), other[1]


def planted_regression(rows):
    """Take every image of one class for another."""
    for row in rows:
        row[2] = "8" if row[1] == PLANTED else row[2]


@pytest.fixture(scope="module")
def branches(reproduced_once, tmp_path_factory):
    """main: the tiny run; better: four epochs; seed, planted: its answers, with others wrong, with a class wrong."""
    assert "train.epochs=2" in TINY
    workspace = reproduced_once.copy(tmp_path_factory.mktemp("comparison") / "clone")
    workspace.run("git", "checkout", "--quiet", "-b", "better")
    workspace.run("dvc", "exp", "run", "-S", "train.epochs=4", "--name", "longer")
    workspace.commit()
    answer(workspace, "seed", another_seed)
    answer(workspace, "planted", planted_regression)
    workspace.run("git", "checkout", "--quiet", "main")
    workspace.run("dvc", "checkout", "--quiet")
    return workspace


def test_a_longer_training_is_better_and_the_experiment_has_a_name(branches):
    done, report = compared(branches, "main", "better", "--fail-on", "regression")
    assert done.stdout.startswith("better: accuracy 0.")
    assert report.startswith("# Better: better (")
    assert "| train.epochs | 2 | 4 |" in report
    assert compared(branches, "main", "longer")[0].stdout.startswith("better: ")
    for name in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert (branches.path / "runs/out" / name).stat().st_size > 500
    assert {"fixed.png", "curves.svg", "classes.svg", "reliability.svg", "confusion.svg"} <= set(
        re.findall(r"\]\((.*?)\)", report)
    )
    assert "http" not in "".join(
        path.read_text().replace("http://www.w3.org/2000/svg", "")
        for path in (branches.path / "runs/out").glob("*.svg")
    )


def test_another_seed_shows_no_difference_and_how_large_a_one_it_could_have_shown(branches):
    done, report = compared(branches, "better", "seed", "--fail-on", "regression")
    assert done.stdout.startswith("no difference shown: ")
    assert re.search(r"These images show a difference of \d\.\d points or more in 80% of cases", report)


def test_the_planted_regression_is_named_by_its_class_and_its_images_are_on_the_sheet(branches):
    done, report = compared(branches, "better", "planted", "--fail-on", "regression", check=False)
    assert done.returncode == 3
    assert done.stdout.startswith("worse: ")
    assert re.search(rf"^classes found worse than before: {PLANTED} \d+/\d+ -> 0/\d+$", done.stdout, re.MULTILINE)
    assert f"Classes found worse than before: **{PLANTED}** (" in report
    broken = report[report.index("### Right before") :].split("\n\n")[2].splitlines()[2:]
    listed = [[cell.strip() for cell in row.strip("|").split("|")] for row in broken]
    assert len(listed) == 24
    assert {row[2] for row in listed} == {PLANTED}
    # the first tile is the first image listed
    ids = json.loads((branches.path / "data/processed/test_ids.json").read_text())
    pixels = np.load(branches.path / "data/processed/test_images.npy")[ids.index(listed[0][1])][..., 0]
    sheet = np.asarray(Image.open(branches.path / "runs/out/broken.png").convert("L"))
    assert np.abs(sheet[8:104:3, 8:104:3].astype(int) - pixels).mean() < 3


def test_nothing_is_checked_out_and_plots_still_compare(branches):
    compared(branches, "better", "planted")
    assert branches.clean()
    drawn = json.loads(branches.run("dvc", "plots", "diff", "main", "better", "--json").stdout)["data"]
    assert any(name.endswith("Loss") for name in drawn)


def test_a_mistake_is_one_line(branches):
    done = branches.run("python", "-m", "reprise", "compare", "nowhere", check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: nowhere: no Git revision and no DVC experiment has this name; .*\n", done.stderr)
