"""The model card tells what the other files record, the same bytes each time, and nothing in it becomes markup."""

import csv
import io
import json
import re
from typing import get_args

import pytest
import torch
from huggingface_hub import ModelCard as HubCard

from reprise.data.formats.packed import Metadata
from reprise.evaluation.calibration import calibration
from reprise.evaluation.evaluate import ClassRow, Evaluation
from reprise.evaluation.groups import Group, Groups
from reprise.evaluation.model_page import LICENSES, model_card
from reprise.model.artifact import Architecture, ModelCard, Origin, Preprocessing, Training
from reprise.params.schema import DataSet
from reprise.runtime.intervals import wilson
from reprise.runtime.provenance import Provenance

# 10 cats, of which 9 are found; 4 dogs, 2 of them taken for cats; no owl in the test split
LABELS = [0] * 10 + [1] * 4
CONFIDENCE = [0.9] * 10 + [0.6] * 4
PREDICTED = [0] * 9 + [1] + [1, 1, 0, 0]


def page(
    classes=("cat", "dog", "owl"),
    data="pets",
    settings=None,
    confusion=((9, 1, 0), (2, 2, 0), (0, 0, 0)),
    start=None,
    title=None,
    head=None,
    pretrained=False,
    defaults=None,
    groups=Groups({}, {}, []),
    **more,
):
    probabilities = torch.full((14, 3), 0.0)
    for row, (guess, confidence) in enumerate(zip(PREDICTED, CONFIDENCE, strict=True)):
        probabilities[row] = (1 - confidence) / 2
        probabilities[row, guess] = confidence
    metrics = {"accuracy": 0.785714, "loss": 0.5, "auroc": None, "images": 14, **more}
    rows = [ClassRow(name, 0, None, None, None) for name in classes]
    ids, labels = [str(i) for i in range(14)], torch.tensor(LABELS)
    right = probabilities.argmax(dim=1) == labels
    calibrated = calibration(probabilities.amax(dim=1).numpy(), right.numpy(), 10)
    evaluation = Evaluation(
        list(classes), ids, labels, probabilities, metrics, rows, torch.tensor(confusion), calibrated, groups
    )
    card = ModelCard(
        architecture=Architecture(model_name="resnet18", num_classes=3, in_chans=3, image_size=32, kwargs={}),
        classes=list(classes),
        preprocessing=Preprocessing(image_size=32, channels=3, mean=[0.5] * 3, std=[0.5] * 3),
        training=Training(data=data, splits_sha256="s", pretrained=pretrained, start=start, epoch=4, head=head, seed=7),
        provenance=Provenance(
            reproducible="portable", threads=1, device="cpu", cpu_capability="AVX2", packages={"torch": "2.13.0"},
            params_sha256="p", data_sha256="d", code_sha256="c",
        ),
        weights_sha256="w",
    )  # fmt: skip
    metadata = Metadata(relabeled=3, test_corrections={"relabeled": 2, "dropped": 1},
        data=title or data, classes=list(classes), image_size=32, channels=3, mean=[0.5] * 3, std=[0.5] * 3,
        counts={"train": 100, "val": 10, "test": 14}, dropped=2, source_sha256="a", splits_sha256="s", sha256={},
    )  # fmt: skip
    return model_card(card, metadata, settings or {"train": {"lr": 0.003}}, evaluation, None, defaults or {})


def test_shares_come_with_wilsons_interval_and_a_class_without_images_claims_nothing():
    said = page()
    low, high = wilson(11, 14)
    assert f"0.7857 ({low:.4f} to {high:.4f}) of 14 test images" in said
    assert f"| cat | 10 | 0.9000 ({wilson(9, 10)[0]:.4f} to 0.9821) | 0.8182 " in said
    assert "| owl | 0 | none | none |" in said
    assert "| auroc | none |  |" in said
    assert "\n\n1 of 3 classes without a test image (owl)&#58; averages over the classes leave them out " in said
    assert "without a test image (" not in page(confusion=((9, 1, 0), (2, 1, 0), (0, 0, 1)))
    assert "Weakest class: dog, 2 of 4 found" in said
    assert "Classes without a test image: 1;" in said
    assert "in a later split too or by corrections: 2 images." in said
    assert "| labels corrected | 3 |\n| test images relabeled by corrections | 2 |" in said
    assert "| test images dropped by corrections | 1 |" in said
    assert "It holds the features of every training image" in page(head="knn head")
    assert "It holds" not in said
    assert "Weakest" not in page(confusion=((10, 0, 0), (0, 4, 0), (0, 0, 0)))  # nothing is weak here


def test_the_worst_groups_are_named_and_stay_text():
    failing = Group(("camera=<b>", "age=low"), 30, 15, 0.001)
    said = page(groups=Groups({}, {"age=low": "8 to 12"}, [failing, *[Group(("light=Day",), 40, 36, 1.0)] * 9]))
    assert (
        "worse than the rest, of 10 groups of at least 20 images&#58; camera=&#60;b&#62; &#38; age=low (15 of" in said
    )
    assert "| camera=&#60;b&#62; &#38; age=low | 8 to 12 | 30 | 0.5000 (0.3315 to 0.6685) | 0.001 |" in said
    assert said.count("| light=Day |  | 40 | 0.9000 (") == 4


def test_licenses_of_data_and_weights_are_named_or_said_to_be_unknown():
    weights = Origin(source="timm/resnet18.a1_in1k", revision="r", sha256="w")
    assert "| license of the data | CC BY 4.0 |" in page(data="digits", title="My digits")
    assert "| license of the data | not known |" in page(title="digits")
    assert LICENSES.keys() <= {*get_args(DataSet)}
    assert "From the weights timm/resnet18.a1_in1k (license: apache-2.0; SHA-256 w)" in page(start=weights)
    # a file, whoever made it
    assert "(license: not known; SHA-256 w)" in page(start=weights.model_copy(update={"source": "mine.pth"}))
    assert "From random weights" in page()


def test_own_data_have_the_name_that_they_are_given():
    said = page(data="folder", title="Leaves of <2025>")
    assert "\n# resnet18, trained on Leaves of &#60;2025&#62;\n" in said
    assert "| data set | Leaves of &#60;2025&#62; |" in said


def test_a_metric_that_could_not_be_had_is_none():
    assert "| images | 14 |  |\n| flops | none |  |\n" in page(flops=None)
    assert "| flops | 8,050,560 |  |\n" in page(flops=8_050_560)


def test_calibration_is_told_by_bins_that_hold_images():
    said = page()
    assert "0.8143 confident on average and right in 0.7857" in said
    assert re.search(r"^\| 0\.[56]00 to 0\.[67]00 \| 4 \| 0\.6000 \| 0\.5000 \|$", said, re.MULTILINE)
    assert len(re.findall(r"^\| 0\.\d{3} to ", said, re.MULTILINE)) == 2


def test_the_same_facts_give_the_same_page_and_names_stay_text():
    assert page() == page()
    said = page(classes=("a|b", "<img src=x>", "@all\n# x"), data="[x](http://y)", settings={"model": {"name": "`"}})
    for active in ("a|b", "<img", "@all", "\n# x", "[x]("):
        assert active not in said.partition("\n---\n")[2]


def test_a_hub_reads_the_metadata_block_whatever_the_names_are():
    name = 'a: "b"\n---\n# c\x7f\u2028é'
    read = HubCard(page(data=name, f1=None)).data
    assert (read.library_name, read.pipeline_tag) == ("timm", "image-classification")
    (result,) = read.eval_results
    assert result.dataset_name == 'a: "b"\n---\n# c??é'
    assert (result.task_type, result.dataset_split) == ("image-classification", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.785714)


def test_parameters_at_their_defaults_fold_away():
    settings = {"train": {"lr": 0.003, "ema": 0.9, "epochs": 3}}
    said = page(settings=settings, defaults={"train.lr": 0.003, "train.ema": None, "train.epochs": 2})
    shown, _, folded = said.partition("<details><summary>1 at their defaults</summary>")
    assert [name in shown for name in ("train.lr", "train.ema", "train.epochs")] == [False, True, True]
    assert [name in folded for name in ("train.lr", "train.ema", "train.epochs")] == [True, False, False]
    assert "<details>" not in page(settings=settings)


def test_the_published_card_agrees_with_the_published_metrics(reproduced_once):
    said = (reproduced_once.path / "models/README.md").read_text()
    measured = json.loads((reproduced_once.path / "metrics/test.json").read_text())
    assert f"| accuracy | {measured['accuracy']:.4f} | " in said
    assert f"| loss | {measured['loss']:.4f} |" in said
    for row in csv.DictReader(io.StringIO((reproduced_once.path / "metrics/per_class.csv").read_text())):
        shown, recall = re.search(rf"^\| {row['class']} \| ([\d,]+) \| ([\d.]+) ", said, re.MULTILINE).groups()
        assert (int(shown.replace(",", "")), float(recall)) == (
            int(row["images"]),
            pytest.approx(float(row["recall"]), abs=5e-5),
        )
    assert "| train.epochs | 2 |" in said
    assert "models/README.md" in reproduced_once.run("git", "ls-files").stdout.split()
