"""The report of a sweep, of trials written by hand."""

import re

import pytest

from reprise.search.report import front, importances, ranked, write
from reprise.search.space import Definition
from reprise.search.study import Trial

SPACE = {"train.lr": "log(1e-4, 1e-1)", "train.optimizer": "adamw|sgd", "train.weight_decay": "float(0, 1)"}
LR = [0.0001, 0.001, 0.01, 0.1, 0.0003, 0.003, 0.03, 0.02]


@pytest.fixture
def definition(tmp_path):
    return lambda **changes: Definition.load(tmp_path / "lr.yaml", space=SPACE, trials=9, **changes)


def trial(number, values=None, state="complete", reason=None, **params):
    params = {"train.lr": LR[number % 8], "train.optimizer": ["adamw", "sgd"][number % 2], **params}
    return Trial(number, f"lr-{number:04d}", state, params, values, reason, 12.34, [0.5], None)


def test_the_best_comes_first_of_equals_the_earliest_and_what_is_no_number_never(definition):
    trials = [trial(0, [0.5]), trial(1, [float("nan")]), trial(2, [0.9]), trial(3, [0.9]), trial(4, state="pruned")]
    assert [each.number for each in ranked(trials, definition())] == [2, 3, 0]
    assert [each.number for each in front(trials, definition())] == [2, 3]
    assert front(trials, definition(objectives=["val_loss"])) == trials[:1]
    both = [[0.8, 10.0], [0.9, 20.0], [0.7, 5.0], [0.8, 11.0], [0.9, 20.0], [0.95, 30.0], [0.1, 31.0]]
    unbeaten = front([trial(*each) for each in enumerate(both)], definition(objectives=["val_accuracy", "flops"]))
    assert [each.number for each in unbeaten] == [5, 1, 4, 0, 2]


def test_the_parameter_that_decides_is_the_important_one(definition):
    trials = [trial(number, [0.9 - abs(LR[number % 8] - 0.01)]) for number in range(16)]
    assert list(shares := importances(trials, definition())) == ["train.lr", "train.optimizer"]
    assert shares["train.lr"] > 0.9


def test_the_page_names_the_best_and_says_how_far_that_can_be_trusted(definition, tmp_path):
    trials = [trial(number, [0.5 + number / 100]) for number in range(7)]
    trials += [trial(7, state="pruned", reason="after epoch 3"), trial(8, state="failed", reason="no | <b>memory</b>")]
    page = write(tmp_path / "out", definition(), trials, "better: 0.1 -> 0.2\nnote: [one](x)").read_text()
    assert page.startswith("# Sweep lr\n\n7 of 9 trials are complete; pruned: 1, failed: 1.")
    assert "\nBest: **lr-0006** with val_accuracy 0.56, train.lr 0.03, train.optimizer adamw. The trials" in page
    assert "\nbetter&#58; 0.1 -&#62; 0.2\n\nnote&#58; &#91;one&#93;(x)\n\nThe figure on new seeds" in page
    assert "The best of 7 trials is optimistic" in page
    assert "No trial has looked at the test split" in page
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| \**lr-", line)]
    assert [row[0].strip("| *") for row in rows] == [f"lr-{number:04d}" for number in (6, 5, 4, 3, 2, 1, 0, 8, 7)]
    assert rows[0] == ["| **lr-0006**", "0.56", "0.03", "adamw", "-", "12.3", "complete |"]
    assert rows[-2][-1] == "failed&#58; no &#124; &#60;b&#62;memory&#60;/b&#62; |"
    assert rows[-1][-1] == "pruned&#58; after epoch 3 |"


def test_the_same_trials_give_the_same_bytes_and_the_html_needs_no_other_file(definition, tmp_path):
    two = definition(objectives=["val_accuracy", "flops"])
    trials = [trial(number, [number / 10, float(number)], **{"train.weight_decay": 0.5}) for number in range(9)]
    folders = [write(tmp_path / name, two, trials, "").parent for name in ("one", "two")]
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == other
    assert sorted(one) == ["best.svg", "front.svg", "parameters.svg", "report.html", "report.md"]
    assert re.findall(rb'(?:src|href)="(?!data:image/svg\+xml;base64,)', one["report.html"]) == []
    assert len(re.findall(rb'<img src="data:[^"]+" alt="[^"]{30,}"', one["report.html"])) == 3
    assert b">train.weight_decay<" in one["parameters.svg"]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, [0.5]), trial(1, [float("nan")]), trial(2, state="pruned")],
        [trial(number, [0.1]) for number in range(9)],
        [trial(number, [number / 10], **{"train.optimizer": "sgd", "train.lr": 0.1}) for number in range(9)],
    ],
)
def test_few_or_equal_trials_have_a_page_without_importances(definition, tmp_path, trials):
    page = write(tmp_path / "out", definition(), trials, "")
    assert importances(trials, definition()) == {}
    pictures = ["best.svg", "parameters.svg"] if ranked(trials, definition()) else []
    assert re.findall(r"\((\w+\.svg)\)", page.read_text()) == pictures
    assert sorted(path.name for path in page.parent.glob("*.svg")) == pictures
