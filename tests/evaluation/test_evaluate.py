"""The metrics are the textbook's, and each image counts exactly once."""

import csv
import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reprise.data.formats.packed import load_metadata
from reprise.evaluation.calibration import calibration
from reprise.evaluation.evaluate import check_budget, evaluate, extra_metric, predict, summarize
from reprise.loader.batches import EvalBatches
from reprise.model.backbone import count_flops, create_network
from reprise.params.schema import BudgetParams
from reprise.runtime.errors import UserError
from tests.loader.test_batches import metadata, numbered
from tests.model.test_backbone import card, facts, params


@pytest.fixture(scope="module")
def measured():
    """A made-up evaluation of 50 images in 3 classes."""
    network, architecture = create_network(params(), facts(), 0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (50,), generator=generator)
    logits = torch.randn(50, 3, generator=generator) + 1.5 * nn.functional.one_hot(labels, 3)
    return logits, labels, summarize(network, card(architecture), numbered(50), logits, labels, calibration_bins=10)


def test_precision_recall_and_f1_agree_with_scikit_learn(measured):
    logits, labels, result = measured
    macro = precision_recall_fscore_support(labels, logits.argmax(1), average="macro")
    assert [result.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3], rel=1e-5)
    each = precision_recall_fscore_support(labels, logits.argmax(1), average=None)
    rows = [(row.precision, row.recall, row.f1, row.images) for row in result.per_class]
    assert np.array(rows) == pytest.approx(np.array(each).T, rel=1e-5)


def test_further_metrics_of_torchmetrics_come_by_name(measured):
    logits, labels, result = measured
    kappa = extra_metric("cohen_kappa", result.probabilities, labels)
    assert kappa == pytest.approx(cohen_kappa_score(labels, logits.argmax(1)), rel=1e-5)
    auroc = roc_auc_score(labels, logits.softmax(1), multi_class="ovr")
    assert extra_metric("auroc", result.probabilities, labels) == pytest.approx(auroc, rel=1e-5)


def test_a_model_beyond_its_budget_is_refused_with_every_excess():
    budget = BudgetParams(parameters=1000, flops=10, size_mb=1.4)
    check_budget({"parameters": 1000, "flops": 10, "size_mb": 1.4, "images": 10**9}, budget)
    check_budget({"parameters": 10**9, "flops": None}, BudgetParams(parameters=None, flops=None, size_mb=None))
    check_budget({"parameters": 1000}, budget)
    with pytest.raises(UserError) as refused:
        check_budget({"parameters": 1001, "flops": None, "size_mb": 1.5}, budget)
    assert str(refused.value) == (
        "evaluate.budget.parameters = 1,000: this model needs 1,001; evaluate.budget.flops = 10: this model cannot be "
        "counted; evaluate.budget.size_mb = 1.4: this model needs 1.5000; "
        "take a smaller model.name, or raise the budget"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AUROC", "torchmetrics has no multiclass 'AUROC'; it has auroc"),
        ("cohen_kapa", "torchmetrics has no multiclass 'cohen_kapa'; it has cohen_kappa"),
        ("../x", "torchmetrics has no multiclass '../x'; it has accuracy, "),
        ("confusion_matrix", "confusion_matrix is not one number, or needs more than its defaults"),
        ("roc", "roc is not one number"),
        ("recall_at_fixed_precision", "recall_at_fixed_precision is not one number, or needs more"),
    ],
)
def test_a_further_metric_that_is_no_number_is_refused(name, said, measured):
    _, labels, result = measured
    with pytest.raises(UserError, match=f"evaluate.metrics: {said}"):
        extra_metric(name, result.probabilities, labels)


def test_accuracy_and_loss_are_means_over_images(measured):
    logits, labels, result = measured
    assert result.metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-5)
    chosen = logits.double().log_softmax(1)[torch.arange(50), labels]
    assert result.metrics["loss"] == pytest.approx(-chosen.mean().item(), rel=1e-5)


def test_calibration_error_by_hand(measured):
    logits, labels, result = measured
    confidence, predicted = logits.softmax(1).max(1)
    error = 0.0
    for low in torch.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            gap = (predicted == labels)[inside].double().mean() - confidence[inside].double().mean()
            error += abs(gap.item()) * inside.sum().item() / 50
    assert result.metrics["ece"] == pytest.approx(error, rel=1e-4)


def test_calibration_puts_a_confidence_of_one_into_the_last_bin():
    found = calibration(np.array([1.0, 0.95, 1.0, 0.55, np.nan]), np.array([True, False, True, True, True]), 10)
    # (0.9, 1]: 2 of 3 right at a mean confidence of 2.95 / 3; (0.5, 0.6]: 1 right at 0.55
    wanted = (abs(2 - 2.95) + abs(1 - 0.55)) / 4
    assert found.error == pytest.approx(wanted, rel=1e-6)
    assert [(each.low, each.images) for each in found.bins] == [(0.5, 1), (0.9, 3)]


def test_flops_of_attention_are_counted():
    network, architecture = create_network(params("test_vit", depth=1), facts(), 0)
    one = count_flops(network, architecture)
    network, architecture = create_network(params("test_vit", depth=2), facts(), 0)
    block = network.model.blocks[0]
    tokens, width = 1 + (32 // 16) ** 2, network.model.embed_dim
    linear = sum(2 * tokens * part.weight.numel() for part in block.modules() if isinstance(part, nn.Linear))
    attention = 2 * 2 * tokens * tokens * width  # queries by keys, and weights by values
    assert count_flops(network, architecture) - one == linear + attention


def test_top5_appears_only_where_it_says_something(measured):
    *_, result = measured
    assert "top5_accuracy" not in result.metrics
    network, architecture = create_network(params(), facts(), 0)
    names = [str(number) for number in range(8)]
    wide = card(architecture).model_copy(update={"classes": names})
    logits = torch.arange(8.0).repeat(4, 1)  # ranks 7, 6, 5, 4, 3 first
    labels = torch.tensor([7, 3, 2, 0])
    wide_result = summarize(network, wide, numbered(4), logits, labels, 10)
    assert wide_result.metrics["top5_accuracy"] == 0.5
    assert wide_result.metrics["accuracy"] == 0.25


def test_flops_are_two_per_multiply_add():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 32 * 32, 3))
    _, architecture = create_network(params(), facts(), 0)
    convolution, linear = 32 * 32 * 4 * 9, 4 * 32 * 32 * 3
    assert count_flops(network, architecture) == 2 * (convolution + linear)
    network[2].seen = network(torch.zeros(1, 1, 32, 32))  # kept with its gradient, of which nothing makes a copy
    assert count_flops(network, architecture) == 2 * (convolution + linear)


class Token(nn.Module):
    """Gives a parameter itself to a module, as pit does."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.frozen = nn.Linear(8, 5).requires_grad_(False)
        self.head = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.head(self.frozen(self.token))).expand(len(x), 3)


class Raises(Token):
    """Cannot be run."""

    def forward(self, x):
        super().forward(x)
        raise ValueError("not\nhere")


@pytest.mark.parametrize(
    ("network", "flops", "said"),
    [(Token(), 2 * (8 * 5 + 5 * 3), ""), (Raises(), None, "test_resnet: FLOPs not counted (not here)\n")],
)
def test_counting_never_raises_and_leaves_the_network_as_it_was(network, flops, said, capsys):
    _, architecture = create_network(params(), facts(), 0)
    network.train().norm.eval()
    with torch.inference_mode():
        assert count_flops(network, architecture) == flops
    assert count_flops(network, architecture) == flops
    assert capsys.readouterr().err == said + said
    assert [name for name, part in network.named_modules() if not part.training] == ["norm"]
    frozen = [name for name, part in network.named_parameters() if not part.requires_grad]
    assert frozen == ["frozen.weight", "frozen.bias"]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


@pytest.mark.parametrize(
    "name",
    [
        "pit_ti_224",
        "vit_base_patch16_siglip_224",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("tnt_s_legacy_patch16_224", "cait_xxs24_224", "vit_pe_core_tiny_patch16_384")
        ),
    ],
)
def test_flops_of_a_trained_network_are_those_of_one_that_records_gradients(name, capsys):
    with torch.device("meta"):
        network, architecture = create_network(params(name), facts(image_size=224), 0)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network.eval()(torch.zeros(1, 1, 224, 224))
        assert count_flops(network, architecture) == counter.get_total_flops() > 0
    assert capsys.readouterr().err == ""


def test_an_evaluation_without_flops_is_shown(measured):
    *_, result = measured
    metrics = {"accuracy": 0.5, "images": 1234, "flops": None}
    assert replace(result, metrics=metrics).table() == (
        "  accuracy          0.5000\n  images             1,234\n  flops               none\n"
        "  groups: none of 0 groups of at least 20 images is shown to be worse than the rest"
    )


class Echo(nn.Module):
    """Logits that say which image came in."""

    def forward(self, x):
        return x[:, :, 0, 0] * 255


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_predictions_do_not_depend_on_the_batch_size_and_padding_is_gone(batch_size):
    logits, labels = predict(Echo(), EvalBatches(numbered(10), metadata(), batch_size), "cpu")
    assert logits.round().flatten().tolist() == list(range(10))
    assert labels.tolist() == list(range(10))


def test_predictions_are_made_in_fp32_channels_last_inference_mode_with_one_shape():
    seen = set()

    class Watched(Echo):
        def forward(self, x):
            layout = x.is_contiguous(memory_format=torch.channels_last)
            seen.add((tuple(x.shape), x.dtype, layout, torch.is_inference_mode_enabled(), self.training))
            return super().forward(x)

    split = numbered(10)
    color = replace(split, images=split.images.repeat(3, axis=3))
    predict(Watched().train(), EvalBatches(color, metadata(channels=3), 4), "cpu")
    assert seen == {((4, 3, 4, 4), torch.float32, True, True, False)}


def test_the_files_say_what_was_measured(measured, tmp_path):
    logits, labels, result = measured
    files = [tmp_path / name for name in ("test.json", "per_class.csv", "confusion.csv", "risk.csv", "predictions.csv")]
    result.save(*files)
    assert json.loads(files[0].read_text()) == result.metrics
    confusion = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert [(row["label"], row["predicted"]) for row in confusion[:3]] == [("a", "a"), ("b", "b"), ("c", "c")]
    table = confusion_matrix(labels, logits.argmax(1))
    written = {(row["label"], row["predicted"]): int(row["images"]) for row in confusion}
    assert written == {("abc"[i], "abc"[j]): table[i, j] for i in range(3) for j in range(3) if i == j or table[i, j]}
    wrong = sum(int(row["images"]) for row in confusion if row["label"] != row["predicted"])
    assert wrong == (logits.argmax(1) != labels).sum()
    rows = list(csv.DictReader(io.StringIO(files[4].read_text())))
    assert [row["id"] for row in rows] == [str(number) for number in range(50)]
    for row, probabilities, label in zip(rows, logits.softmax(1).tolist(), labels.tolist(), strict=True):
        assert [float(row[f"p({name})"]) for name in "abc"] == pytest.approx(probabilities, rel=1e-5)
        assert row["label"] == "abc"[label]
        assert row["predicted"] == "abc"[max(range(3), key=lambda k, p=probabilities: p[k])]


def answered(labels, predicted, classes=("ant", "bee", "emu\n")):
    """Return the evaluation of a model that is 90 % sure of each prediction."""
    network, architecture = create_network(params(), facts(), 0)
    count = len(classes)
    sure = torch.full((len(labels), count), 0.1 / (count - 1))
    sure[torch.arange(len(labels)), torch.tensor(predicted)] = 0.9
    named = card(architecture).model_copy(update={"classes": list(classes)})
    return summarize(network, named, numbered(len(labels)), sure.log(), torch.tensor(labels), 10)


MACRO = ("precision", "recall", "f1")


@pytest.mark.parametrize(
    ("labels", "predicted", "rows", "macro"),
    [
        # emu is absent: nothing is known of it, and perfect predictions are perfect
        ([0, 0, 1, 1], [0, 0, 1, 1], [(1, 1, 1), (1, 1, 1), (None, None, None)], (1, 1, 1)),
        # an absent class that is predicted: its claims are wrong
        ([0, 0, 1, 1], [0, 2, 1, 1], [(1, 0.5, 0.666667), (1, 1, 1), (0, None, 0)], (0.666667, 0.75, 0.555556)),
        # bee has images and is never predicted: 0 in the average precision, which is no reason for a better one
        ([0, 0, 1, 2], [0, 0, 0, 2], [(0.666667, 1, 0.8), (None, 0, 0), (1, 1, 1)], (0.555556, 0.666667, 0.6)),
        # one class alone
        ([1, 1], [1, 1], [(None, None, None), (1, 1, 1), (None, None, None)], (1, 1, 1)),
    ],
)
def test_what_is_undefined_is_none_and_no_part_of_an_average(labels, predicted, rows, macro):
    result = answered(labels, predicted)
    assert [(row.precision, row.recall, row.f1) for row in result.per_class] == rows
    assert tuple(result.metrics[name] for name in MACRO) == macro
    for name, own in zip(("precision", "recall", "f1_score", "accuracy"), (*macro, macro[1]), strict=True):
        assert extra_metric(name, result.probabilities, result.labels) == pytest.approx(own, abs=1e-6), name


@pytest.mark.parametrize(
    "name", ["auroc", "average_precision", "recall", "specificity", "f1_score", "jaccard_index", "accuracy", "logauc"]
)
def test_a_further_metric_of_perfect_predictions_is_1_without_a_class_and_torchmetrics_own_with_all(name, measured):
    from torchmetrics.functional import classification

    perfect = answered([0, 0, 1, 1], [0, 0, 1, 1])
    *_, result = measured
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extra_metric(name, perfect.probabilities, perfect.labels) == 1
    own = getattr(classification, f"multiclass_{name}")(result.probabilities, result.labels, num_classes=3)
    assert extra_metric(name, result.probabilities, result.labels) == float(f"{own.item():.6g}")


def test_an_absent_class_is_left_out_of_auroc_as_scikit_learn_has_it(measured):
    _, labels, result = measured
    here = labels != 2
    each = [roc_auc_score(labels[here] == label, result.probabilities[here, label]) for label in (0, 1)]
    got = extra_metric("auroc", result.probabilities[here], labels[here])
    assert got == pytest.approx(sum(each) / 2, rel=1e-5)
    assert 0.5 < got < 1


def test_with_one_class_alone_pairs_of_classes_are_undefined_and_no_library_warns(capfd):
    result = answered([1, 1, 1, 1], [1, 1, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = [extra_metric(name, result.probabilities, result.labels) for name in ("auroc", "recall", "specificity")]
    assert got == [None, 0.5, 0.75]  # of 4 images that are no ants 2 are taken for them, none for emus
    alone = answered([1, 1], [1, 1])
    assert extra_metric("cohen_kappa", alone.probabilities, alone.labels) is None  # 0 / 0
    assert capfd.readouterr() == ("", "")


def test_undefined_values_are_null_in_json_empty_in_csv_and_none_for_people_with_a_note(tmp_path):
    result = answered([0, 0, 1, 1], [0, 0, 1, 1])
    result.metrics["auroc"] = None
    files = [tmp_path / name for name in ("test.json", "per_class.csv", "confusion.csv", "risk.csv", "predictions.csv")]
    result.save(*files)
    assert json.loads(files[0].read_text(), parse_constant=pytest.fail)["auroc"] is None
    assert files[1].read_text().splitlines()[1] == "ant,2,1.0,1.0,1.0"
    assert list(csv.reader(io.StringIO(files[1].read_text())))[3] == ["emu\n", "0", "", "", ""]
    *lines, note, _ = result.table().splitlines()
    assert lines[-1].split() == ["auroc", "none"]
    assert len({len(line) for line in lines}) == 1
    assert note.startswith("  1 of 3 classes without a test image (emu\\n): averages over the classes leave them out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: [*names[:8], "emu", "\x1b[2J"], "not in these data: emu, .x1b.2J, unknown to the model: 8, 9;"),
        (lambda names: names[:9], r"\(9 classes, .*, unknown to the model: 9;"),
        (lambda names: [*names, "x"], r"\(11 classes, .*, not in these data: x;"),
        (lambda names: names[::-1], ", the same classes in another order;"),
        (lambda names: [f"x{name}" for name in names], "x7 and 2 more, unknown .*, 7 and 2 more;"),
    ],
)
def test_other_classes_than_the_models_are_named(change, said, digits):
    network, architecture = create_network(params(), facts(), 0)
    metadata = load_metadata(digits)
    named = card(architecture).model_copy(update={"classes": change(metadata.classes)})
    with pytest.raises(UserError, match=said) as refused:
        evaluate(network, named, digits, 64, 10)
    assert "\x1b" not in str(refused.value)
