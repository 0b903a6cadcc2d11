"""What confidence.json promises holds on images that it has not seen, and it is used for its own model alone."""

import csv
import io
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from reprise.evaluation.calibration import calibration
from reprise.evaluation.confidence import LEAST, NOTHING, Confidence, load_confidence, log_odds
from reprise.evaluation.fitting import check_images, fit_temperature, fitted, least_answered, least_in_set
from reprise.evaluation.reliability import reliability, risk_coverage
from reprise.model.backbone import create_network
from reprise.params.load import load_params
from reprise.runtime.checksums import write_sealed
from reprise.runtime.errors import UserError
from tests.conftest import PARAMS, Workspace
from tests.evaluation.test_evaluate import answered
from tests.model.test_backbone import card, facts, params
from tests.test_pipeline import metrics, ran, refused


def asked(**changes):
    return load_params(PARAMS).evaluate.model_copy(update=changes)


def drawn(images, classes=3, seed=0, temperature=1.0):
    """Logits, float32, of a model that is honest at this temperature, and labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(images, classes))
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    return torch.tensor(logits * temperature, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture(scope="module")
def model():
    return card(create_network(params(), facts(), 0)[1]).model_copy(update={"weights_sha256": "a" * 64})


@pytest.mark.parametrize(("by", "temperature"), [("all", 1), ("class", 1), ("class", 5)])
def test_sets_cover_new_images_as_often_as_promised_even_of_a_dishonest_model(by, temperature, model):
    covered, images = [], 120
    for seed in range(200):
        logits, labels = drawn(600, seed=seed, temperature=temperature)
        found = fitted(logits[:images], labels[:images], model, asked(coverage=0.8, coverage_by=by))
        odds, own = log_odds(logits[images:].softmax(dim=1).numpy()), labels[images:].numpy()
        inside = (odds >= np.array(found.set_log_odds))[np.arange(len(own)), own]
        groups = [own == label for label in range(3)] if by == "class" else [own >= 0]
        covered.append([inside[group].mean() for group in groups])
    error = 4 * np.std(covered, axis=0) / np.sqrt(200)
    excess = 1 / (1 + (images if by == "all" else images / 4))  # of the finite-sample quantile, at most
    assert (np.mean(covered, axis=0) > 0.8 - error).all() and (np.mean(covered, axis=0) < 0.8 + excess + error).all()


def test_the_quantile_is_that_of_finite_samples_and_no_image_lies_at_a_threshold():
    own = np.arange(1, 20) / 20
    found = [least_in_set(own, coverage) for coverage in (0.95, 0.9, 0.5, 1e-10)]
    assert found == pytest.approx([0.05 - math.log(2), 0.075, 0.475, 0.925])  # halfway below 0.05, 0.1, 0.5, 0.95
    assert least_in_set(own[:9], 0.9) == 0.05 - math.log(2)  # ceil(10 * 0.9) of 9: all of them
    threshold = least_answered(np.arange(1000)[::-1] / 1000, np.arange(1000) < 870, 0.05)
    assert threshold == pytest.approx(0.1995)  # between the 800th and the 801st
    tied = np.r_[np.full(950, 7.0), np.zeros(50)]  # as many are as sure as can be
    assert least_answered(tied, np.arange(1000) < 945, 0.02) == 3.5


@pytest.mark.parametrize(("classes", "risk"), [(2, 0.1), (10, 0.3)])
def test_what_a_very_sure_model_answers_does_not_hang_on_the_rounding_of_a_runtime(classes, risk, model):
    logits, labels = drawn(3000, classes, temperature=12)
    logits[labels == 0] *= 3  # probabilities that are 1 in float32
    card = model.model_copy(update={"classes": list(map(str, range(classes)))})
    found = fitted(logits, labels, card, asked(coverage=0.8, risk=risk))
    assert (logits.softmax(dim=1).max(dim=1).values == 1).float().mean() > 0.3
    exact = logits.double().softmax(dim=1)
    other = torch.exp(logits - logits.logsumexp(dim=1, keepdim=True))  # float32, rounded in another order
    judged = [
        [found.judge(card.classes, np.r_[row, np.float32(0)].astype(np.float32)) for row in each.numpy()]
        for each in (logits.softmax(dim=1), exact.float(), other)
    ]
    assert judged[0] == judged[1] == judged[2]
    wrong = [guess != label for guess, label in zip(logits.argmax(dim=1), labels, strict=True)]
    answered = [mistake for mistake, each in zip(wrong, judged[0], strict=True) if not each["unknown"]]
    assert 0 < np.mean(answered) < risk < np.mean(wrong) and len(answered) % 300 == 0


def test_log_odds_keep_what_float32_rounds_away_and_nan_stays():
    doubts = np.array([0.4, 1e-3, 1e-9, 1e-20, 0], np.float32)
    found = log_odds(np.stack([1 - doubts, doubts], axis=1))
    expected = [math.log(p / (1 - p)) for p in (0.4, 1e-3)]
    expected += [math.log(1e-9), math.log(1e-20), math.log(LEAST)]
    assert found[:, 1] == pytest.approx(expected, rel=1e-6) and found[:, 0] == pytest.approx(-found[:, 1], rel=1e-6)
    assert np.isnan(log_odds(np.array([np.nan, 0.5, 0.5]))).all()


SMALL = [  # images of cat and dog, what is asked for, and the refusal
    (
        [18, 0],
        {"coverage": 0.95},
        "coverage = 0.95 needs 19 validation images or more; too few: all classes together (18)",
    ),
    ([19, 8], {"coverage": 0.9, "coverage_by": "class"}, "needs 9 validation images or more; too few: dog (8); raise"),
    ([9, 0], {"coverage": 1e-10, "coverage_by": "class"}, "needs 1 validation images or more; too few: dog (0)"),
    ([103, 0], {"risk": 0.05}, "evaluate.risk = 0.05 needs 104 validation images or more; too few: all classes"),
]


@pytest.mark.parametrize(("counts", "changes", "said"), SMALL)
def test_a_split_that_is_too_small_is_refused_with_the_smallest_that_would_do(counts, changes, said):
    with pytest.raises(UserError) as error:
        check_images(["cat", "dog"], counts, asked(**changes))
    assert said in str(error.value) and "data.val_fraction" in str(error.value)
    check_images(["cat", "dog"], [counts[0] + 1, counts[1] + 1], asked(**changes))  # one more of each is enough


def test_the_risk_holds_in_95_of_100_samples_at_least_and_the_smallest_sample_is_used_up():
    generator, exceeded = np.random.default_rng(0), 0
    for _ in range(500):
        confidence = generator.uniform(size=300)
        try:
            threshold = least_answered(confidence, generator.uniform(size=300) < confidence**0.3, 0.1)
        except UserError:
            continue
        above = max(threshold, 0)  # as all are
        exceeded += 1 - (1 - above**1.3) / 1.3 / (1 - above) > 0.1  # the true risk above it
    assert exceeded <= 25
    assert least_answered(np.linspace(0.1, 1, 104), np.full(104, True), 0.05) < 0
    with pytest.raises(UserError, match=r"risk = 0.05: 1 of 104 validation images are wrong, and no threshold"):
        least_answered(np.linspace(0.1, 1, 104), np.arange(104) != 103, 0.05)


def test_a_temperature_is_found_where_there_is_one_and_refused_with_the_reason_where_not(model):
    logits, labels = drawn(2000, temperature=3)
    found = fitted(logits, labels, model, asked(calibration="temperature"))
    assert found.temperature == pytest.approx(3, rel=0.1) and "lowers cross-validated NLL by" in found.calibration
    assert torch.equal((logits / found.temperature).argmax(dim=1), logits.argmax(dim=1))
    both = fitted(logits, labels, model, asked(calibration="temperature", coverage=0.8, risk=0.3))
    again = fitted(logits / found.temperature, labels, model, asked(coverage=0.8, risk=0.3))
    assert (both.set_log_odds, both.answer_log_odds) == (again.set_log_odds, again.answer_log_odds)
    honest = fit_temperature(*drawn(2000))
    assert honest[0] == 1 and honest[1].startswith("not applied: no gain is shown by 0.9")
    # of these few images themselves the interval of the gain begins at 0.02
    assert fit_temperature(*drawn(40, seed=31, temperature=2.5))[1].endswith("95 % interval -0.0205 to 0.3487)")
    one = logits.argmax(dim=1) * (torch.arange(2000) > 0)  # of so many images one at most is wrong
    assert fit_temperature(logits, one)[0] == 1
    assert fit_temperature(100 * logits, logits.argmax(dim=1))[0] == 1  # whose loss is 0 before the bound
    with warnings.catch_warnings(action="error"):
        assert fit_temperature(logits[:1], labels[:1])[0] == 1
    perfect = fit_temperature(logits, logits.argmax(dim=1))
    assert perfect[0] == 1 and perfect[1].startswith("not applied: too few images are wrong")
    with pytest.raises(UserError, match="not numbers"):
        fitted(logits * torch.inf, labels, model, asked(calibration="temperature"))


def test_nll_brier_and_ece_are_the_textbooks_with_intervals_that_hold_them():
    logits, labels = drawn(500)
    found, probabilities = reliability(logits, labels, 15), logits.double().softmax(dim=1).numpy()
    right = probabilities.argmax(axis=1) == labels.numpy()
    expected = log_loss(labels, probabilities), brier_score_loss(labels, probabilities, scale_by_half=False)
    expected += (calibration(probabilities.max(axis=1), right, 15).error,)
    assert [found[name][0] for name in ("loss", "brier", "ece")] == pytest.approx(expected)
    assert all(low < value < high for value, low, high in found.values()) and found["ece"][2] < 0.15


@pytest.mark.parametrize("temperature", [1, 1.3])
def test_the_interval_of_ece_holds_the_one_measured_and_the_true_one(temperature):
    logits, labels = drawn(400_000, temperature=temperature)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    true = calibration(confidence.numpy(), (predicted == labels).numpy(), 15).error
    samples = zip(logits[:40_000].split(400), labels[:40_000].split(400), strict=True)
    intervals = [reliability(*sample, 15)["ece"] for sample in samples]
    assert all(0 <= low <= value <= high for value, low, high in intervals)
    assert sum(low <= true <= high for _, low, high in intervals) >= 88  # of 100; binomial, of 95 %


def test_the_curve_answers_the_most_confident_first():
    rows = risk_coverage(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), torch.tensor([0, 0, 1]))
    assert rows == [["0.333333", "0", "0.9"], ["0.666667", "0.5", "0.8"], ["1", "0.666667", "0.6"]]


def test_a_promise_that_the_test_images_contradict_is_said():
    fitted = Confidence(images=9, coverage=0.9, set_log_odds=(0,), risk=0.05, answer_log_odds=0)
    for coverage, risk, said in [
        ((0.87, 0.82, 0.9), (0.07, 0.05, 0.1), ""),
        ((0.96, 0.94, 0.98), (0.07, 0.06, 0.1), "selective_risk is 0.0700 (0.0600 to 0.1000), 0.05 was promised"),
        ((0.86, 0.82, 0.89), (0.01, 0, 0.02), "coverage is 0.8600 (0.8200 to 0.8900), 0.9 was promised"),
        ((0.91, 0.89, 0.93), (math.nan, 0, 1), ""),  # none is answered
    ]:
        result = replace(
            answered([0, 0, 1], [0, 1, 1]),
            confidence=fitted,
            measured={"coverage": [coverage], "selective_risk": [risk]},
        )
        assert result.broken_promises() == f"not kept on the test images: {said}" * bool(said)
        assert said in result.table()


def test_an_answer_is_judged_by_what_the_model_has_and_nan_is_unknown():
    answer = np.array([0.52, 0.4, 0.08, -2.5], np.float32)
    assert NOTHING.judge(["a", "b", "c"], answer[:3]) == {} and NOTHING.columns == []
    sets = Confidence(images=9, coverage=0.9, set_log_odds=(0, 0, -3))
    assert sets.judge(["a", "b", "c"], answer) == {"prediction_set": ["a", "c"], "energy": -2.5}
    unsure = Confidence(images=9, risk=0.1, answer_log_odds=0.0801)  # log(0.52 / 0.48) is 0.0800
    assert unsure.judge(["a", "b", "c"], answer)["unknown"] is True
    assert unsure.judge(["b", "c", "a"], answer + np.float32([0.01, 0, -0.01, 0]))["unknown"] is False
    assert unsure.judge(["a", "b", "c"], answer * np.float32("nan"))["unknown"] is True


def test_a_file_that_is_altered_or_of_other_weights_is_refused(tmp_path, model):
    path = tmp_path / "confidence.json"
    assert load_confidence(path, model) == NOTHING
    write_sealed(path, Confidence(weights_sha256="b" * 64).model_dump())
    assert load_confidence(path, model) == NOTHING  # promises nothing, so that it does not matter of what
    own = Confidence(weights_sha256=model.weights_sha256, images=50, risk=0.1, answer_log_odds=0.7)
    write_sealed(path, own.model_dump())
    assert load_confidence(path, model) == own
    with pytest.raises(UserError, match="fitted for other weights"):
        load_confidence(path, model.model_copy(update={"weights_sha256": "b"}))
    path.write_text(path.read_text().replace("0.7", "0.1"))
    with pytest.raises(UserError, match="altered"):
        load_confidence(path, model)


def test_the_pipeline_fits_writes_and_shows_it_without_training_again(reproduced: Workspace):
    written = reproduced.path / "data/predictions.csv"
    before, models = written.read_text(), reproduced.path / "models"
    assert json.loads((models / "confidence.json").read_text())["images"] == 0
    reproduced.set("evaluate.coverage=0.999")
    said = refused(reproduced.run("dvc", "repro", check=False))
    assert "evaluate.coverage = 0.999 needs 999 validation images or more; too few: all classes together (" in said
    assert written.read_text() == before  # no out was lost
    reproduced.set("evaluate.coverage=0.9", "evaluate.risk=0.9", "evaluate.calibration=temperature")
    assert ran(reproduced.run("dvc", "repro")) == ["evaluate", "export"]
    kept = metrics(reproduced, "test")
    assert abs(kept["coverage"] - 0.9) < 0.12 and kept["selective_risk"] < 0.9
    old, new = (list(csv.reader(io.StringIO(text, newline=""))) for text in (before, written.read_text()))
    assert new[0] == [*old[0], "prediction_set", "unknown", "energy"] and [r[:3] for r in new] == [r[:3] for r in old]
    sets = [json.loads(row[-3]) for row in new[1:]]
    assert np.mean([row[1] in each for row, each in zip(new[1:], sets, strict=True)]) == pytest.approx(kept["coverage"])
    assert {row[-2] for row in new[1:]} <= {"true", "false"} and all(float(row[-1]) < 5 for row in new[1:])
    assert f"| coverage | {kept['coverage']:.4f} (0." in (models / "README.md").read_text()
    table = reproduced.run("python", "src/eval.py").stdout
    assert f"{kept['coverage']:.4f}" in table and f"{kept['loss']:.4f}" in table
    reproduced.commit()
    assert "no difference shown" in reproduced.run("python", "-m", "reprise", "compare", "HEAD~1", "HEAD").stdout
