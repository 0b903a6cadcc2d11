"""The report of a sweep, of trials written by hand."""

import re

import pytest

from reprise.search.report import front, importances, ranked, write
from reprise.search.space import Definition
from reprise.search.study import Trial

SPACE = {
    "train.lr": "log(1e-4, 1e-1)",
    "train.optimizer": "adamw|sgd",
    "train.optimizer_kwargs.momentum": "float(0, 1)",
}
LR = [0.0001, 0.001, 0.01, 0.1, 0.0003, 0.003, 0.03, 0.02]


@pytest.fixture
def definition(tmp_path):
    return lambda **changes: Definition.load(tmp_path / "lr.yaml", {"space": SPACE, "trials": 9, **changes})


def trial(number, values=None, state="complete", reason=None, **params):
    params = {"train.lr": LR[number % 8], "train.optimizer": ["adamw", "sgd"][number % 2], **params}
    return Trial(number, f"lr-{number:04d}", state, params, values, reason, 12.34, [0.5], None)


def lines(page, start):
    return [line for line in page.read_text().splitlines() if line.startswith(start)]


def names(trials):
    return [each.number for each in trials]


def test_the_best_comes_first_of_equals_the_earliest_and_what_is_no_number_never(definition):
    trials = [trial(0, [0.5]), trial(1, [float("nan")]), trial(2, [0.9]), trial(3, [0.9]), trial(4, [float("inf")])]
    trials += [trial(5, state="pruned"), trial(6, state="failed")]
    assert names(ranked(trials, definition())) == [2, 3, 0]
    assert names(front(trials, definition())) == [2, 3]
    assert names(front(trials, definition(objectives=["val_loss"]))) == [0]


def test_of_two_objectives_the_front_is_what_no_other_trial_beats_in_both(definition):
    values = [[0.8, 10.0], [0.9, 20.0], [0.7, 5.0], [0.8, 11.0], [0.9, 20.0], [0.95, 30.0], [0.1, 31.0]]
    trials = [trial(number, each) for number, each in enumerate(values)]
    assert names(front(trials, definition(objectives=["val_accuracy", "flops"]))) == [5, 1, 4, 0, 2]


def test_the_parameter_that_decides_is_the_important_one(definition):
    trials = [trial(number, [0.9 - abs(LR[number % 8] - 0.01)]) for number in range(16)]
    shares = importances(trials, definition())
    assert list(shares) == ["train.lr", "train.optimizer"]
    assert shares["train.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_the_page_names_the_best_and_says_how_far_that_can_be_trusted(definition, tmp_path):
    trials = [trial(number, [0.5 + number / 100]) for number in range(7)]
    trials += [trial(7, state="pruned", reason="after epoch 3"), trial(8, state="failed", reason="no | <b>memory</b>")]
    page = write(tmp_path / "out", definition(), trials, "Not confirmed: `--confirm 5`")
    assert page.read_text().startswith("# Sweep lr\n\nOf 9 trials 7 are complete, 1 were pruned and 1 failed.")
    (best,) = lines(page, "Best: ")
    assert best.startswith("Best: **lr-0006** with val_accuracy 0.56, train.lr 0.03, train.optimizer adamw. The trials")
    assert "The best of 7 trials is optimistic" in page.read_text()
    assert "No trial has looked at the test split" in page.read_text()
    rows = [line.split(" | ") for line in lines(page, "| ") if "lr-" in line]
    assert [row[0].strip("| *") for row in rows] == [f"lr-{number:04d}" for number in (6, 5, 4, 3, 2, 1, 0, 8, 7)]
    assert rows[0] == ["| **lr-0006**", "0.56", "0.03", "adamw", "-", "12.3", "complete |"]
    assert rows[-2][1:] == [
        "-",
        "0.0001",
        "adamw",
        "-",
        "12.3",
        "failed&#58; no &#124; &#60;b&#62;memory&#60;/b&#62; |",
    ]
    assert rows[-1][-1] == "pruned&#58; after epoch 3 |"


def test_what_the_confirmation_says_stands_there_escaped_as_the_estimate(definition, tmp_path):
    page = write(tmp_path / "out", definition(), [trial(0, [0.5])], "better: 0.1 -> 0.2\nnote: [one](x)")
    assert lines(page, "better&#58; 0.1 -&#62; 0.2")
    assert lines(page, "note&#58; &#91;one&#93;(x)")
    assert lines(page, "The figure on new seeds and test images, not the sweep's, is the estimate")


def test_the_same_trials_give_the_same_bytes_and_the_html_needs_no_other_file(definition, tmp_path):
    two = definition(objectives=["val_accuracy", "flops"])
    trials = [
        trial(number, [0.5 + number / 100, float(number)], **{"train.optimizer_kwargs.momentum": 0.5})
        for number in range(9)
    ]
    folders = [write(tmp_path / name, two, trials, "").parent for name in ("one", "two")]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["best.svg", "front.svg", "parameters.svg", "report.html", "report.md"]
    html = contents[0]["report.html"].decode()
    assert re.findall(r'(?:src|href)="(?!data:image/svg\+xml;base64,)', html) == []
    assert len(re.findall(r'<img src="data:[^"]+" alt="[^"]{30,}"', html)) == 3
    assert b">train.optimizer_kwargs.momentum<" in contents[0]["parameters.svg"]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, [0.5])],
        [trial(0, state="failed", reason="no memory")],
        [trial(0, [float("nan")]), trial(1, state="pruned")],
        [trial(number, [0.5]) for number in range(9)],
        [trial(number, [0.5 + number / 100], **{"train.optimizer": "sgd", "train.lr": 0.1}) for number in range(9)],
    ],
    ids=["none", "one", "failed", "nan", "equal", "one-value"],
)
def test_few_or_equal_trials_have_a_page_without_importances(definition, tmp_path, trials):
    page = write(tmp_path / "out", definition(), trials, "")
    assert importances(trials, definition()) == {}
    assert page.with_suffix(".html").stat().st_size > 1000
    named = re.findall(r"\((\w+\.svg)\)", page.read_text())
    assert named == (["best.svg", "parameters.svg"] if ranked(trials, definition()) else [])
    assert all((tmp_path / "out" / name).exists() for name in named)
