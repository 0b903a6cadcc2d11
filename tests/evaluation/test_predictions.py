"""Names that a spreadsheet would compute are text there, and come back as they were."""

import csv

import numpy as np
import pytest

from reprise.evaluation.predictions import read_predictions, write_predictions

NAMES = ["=1+1", "+cat", "-dog", "@bee", "\tx", "'=1", "''+x", "'quoted'", "plain", "=cmd|' /C calc'!A0", "-0.5"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_begins_as_a_formula_is_text_and_is_read_as_it_was(name, tmp_path):
    path, classes = tmp_path / "predictions.csv", [name, "other"]
    probabilities = np.array([[0.75, 0.25], [0.25, 0.75]])
    write_predictions(path, classes, [f"{name}/1.png", "other/2.png"], [1, 0], probabilities)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)
    read = read_predictions(path.read_bytes().decode())
    assert (read.classes, read.ids) == (classes, [f"{name}/1.png", "other/2.png"])
    assert (read.labels.tolist(), read.predicted.tolist()) == (["other", name], [name, "other"])
    assert read.probabilities.tolist() == probabilities.tolist()


def test_usual_names_and_files_of_former_versions_stay_as_they_are():
    text = "id,label,predicted,p(a),p(=b)\na/1.png,a,=b,0.4,0.6\n"
    read = read_predictions(text)
    assert (read.ids, read.labels.tolist(), read.predicted.tolist()) == (["a/1.png"], ["a"], ["=b"])
