"""Evaluation of a model on a split: probabilities of each image, metrics, a table by class and the confusion matrix.

Everything is computed in fp32 on images without augmentation; padding is dropped by `mask_outputs`, so each image
counts once.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reprise.data.formats.packed import PackedSplit, Split, load_metadata, load_split
from reprise.evaluation.calibration import Calibration, calibration
from reprise.evaluation.confidence import NOTHING, Confidence
from reprise.evaluation.groups import Groups, find_groups
from reprise.evaluation.predictions import write_predictions
from reprise.evaluation.reliability import Interval, kept_promises, reliability, risk_coverage
from reprise.evaluation.temperature import outputs
from reprise.loader.batches import EvalBatches, mask_outputs, whole
from reprise.model.artifact import ModelCard
from reprise.model.backbone import TIMMBackbone, count_flops
from reprise.model.convolutions import repaired
from reprise.params.schema import BudgetParams
from reprise.runtime.device import device
from reprise.runtime.errors import UserError, listed, nearest
from reprise.runtime.parts import create_part, is_part
from reprise.runtime.tables import write_csv

# torchmetrics' metrics that need images of the class, and those that need images of other classes too
OF_IMAGES = ("accuracy", "average_precision", "hamming_distance", "recall")
OF_IMAGES_AND_OTHERS = ("auroc", "logauc")
# the metrics that every test.json has, but for top5_accuracy
ALWAYS = ("accuracy", "loss", "top5_accuracy", "precision", "recall", "f1", "ece", "images", "parameters", "flops")
OF_CONFIDENCE = ("brier", "coverage", "set_size", "answered", "selective_risk")


@dataclass(frozen=True)
class ClassRow:
    """One class: the number of images with its label, and precision, recall and F1; None where one is undefined."""

    label: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a split and the metrics computed from them.

    ids: (N,); labels: int64 (N,); probabilities: float32 (N, classes); metrics: None where one is undefined; confusion:
    counts, int64 (classes, classes), a row for each label. judged: of each image by `Confidence.judge`, if the model
    has it; measured: of these answers, with 95 % intervals; a second value is that without the temperature.
    """

    classes: list[str]
    ids: list[str]
    labels: Tensor
    probabilities: Tensor
    metrics: dict[str, float | int | None]
    per_class: list[ClassRow]
    confusion: Tensor
    calibration: Calibration
    groups: Groups
    confidence: Confidence = NOTHING
    judged: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, list[Interval]] = field(default_factory=dict)

    def note(self) -> str:
        """Return a sentence about the classes without test images; "" if there are none."""
        absent = [name for name, images in zip(self.classes, self.confusion.sum(dim=1), strict=True) if not images]
        if not absent:
            return ""
        return (
            f"{len(absent):,} of {len(self.classes):,} classes without a test image ({listed(absent)}): "
            "averages over the classes leave them out where they are undefined"
        )

    def broken_promises(self) -> str:
        """Return what the test images contradict, by their 95 % interval; "" if nothing."""
        said = []
        for name, asked, sign in (
            ("coverage", self.confidence.coverage, 1),
            ("selective_risk", self.confidence.risk, -1),
        ):
            value, *interval = self.measured.get(name, [(math.nan,) * 3])[0]
            if asked is not None and all(sign * bound < sign * asked for bound in interval):
                said.append(f"{name} is {value:.4f} ({interval[0]:.4f} to {interval[1]:.4f}), {asked} was promised")
        return f"not kept on the test images: {'; '.join(said)}" if said else ""

    def class_counts(self) -> list[tuple[str, int, int, int]]:
        """Return of each class its name and the images that were found, that it has, and that were taken for it."""
        sums = self.confusion.diag(), self.confusion.sum(dim=1), self.confusion.sum(dim=0)
        return list(zip(self.classes, *(part.tolist() for part in sums), strict=True))

    def table(self) -> str:
        """Return the metrics as text, one line each, followed by the note and what is found of groups."""
        width = max(map(len, self.metrics))
        lines = [f"  {name:<{width}}  {shown(value):>14}" for name, value in self.metrics.items()]
        fitted = self.confidence.calibration
        notes = [self.note(), f"temperature: {fitted}" if fitted else "", self.broken_promises()]
        return "\n".join(lines + [f"  {note}" for note in (*notes, f"groups: {self.groups.sentence()}") if note])

    def save(self, metrics: Path, per_class: Path, confusion: Path, curve: Path, predictions: Path) -> None:
        """Write metrics (JSON) and, as CSV, the table by class, confusion counts, risk by coverage, predictions."""
        metrics.write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
        write_csv(per_class, ["class", "images", "precision", "recall", "f1"], map(astuple, self.per_class))
        # the diagonal first, so that a plot meets the classes in their order; then the confusions that occurred
        cells = [(label, label) for label in range(len(self.classes))]
        cells += [(label, guess) for label, guess in self.confusion.nonzero().tolist() if label != guess]
        rows = [(self.classes[label], self.classes[guess], int(self.confusion[label, guess])) for label, guess in cells]
        write_csv(confusion, ["label", "predicted", "images"], rows)
        write_csv(curve, ["coverage", "risk", "confidence"], risk_coverage(self.probabilities, self.labels))
        images = self.ids, self.labels.tolist(), self.probabilities.numpy(), self.judged
        write_predictions(predictions, self.classes, *images)


def shown(value: float | int | None) -> str:
    """Format a metric for a table: 4 decimals, thousands separated, or none."""
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def evaluate(
    network: TIMMBackbone,
    card: ModelCard,
    processed: Path,
    batch_size: int,
    calibration_bins: int,
    extra: Sequence[str] = (),
    confidence: Confidence = NOTHING,
) -> Evaluation:
    """Measure a model on the test split of packed data; extra: further metrics, see `extra_metric`.

    confidence: what was fitted for the model; all is measured of the probabilities at its temperature.
    Raises UserError as `predict_split` does, and for an extra metric that cannot be computed.
    """
    named = metric_keys(extra)
    split, logits, labels = predict_split(network, card, processed, "test", batch_size)
    bare, logits = logits, logits / confidence.temperature  # a division by 1 changes no bit
    result = summarize(network, card, split, logits, labels, calibration_bins)
    result.metrics.update({key: extra_metric(name, result.probabilities, labels) for key, name in named.items()})
    if not confidence.columns:
        return result
    judged = [confidence.judge(card.classes, answer) for answer in torch.cat(outputs(bare, confidence), dim=1).numpy()]
    bare_bins, bins = (reliability(each, labels, calibration_bins) for each in (bare, logits))
    measured = {name: [found, bare_bins[name]] for name, found in bins.items()}
    right = (result.probabilities.argmax(dim=1) == labels).tolist()
    measured |= kept_promises(judged, [card.classes[label] for label in labels.tolist()], right)
    result.metrics.update({name: _rounded(found[0][0]) for name, found in measured.items()} | result.metrics)
    return replace(result, confidence=confidence, judged=judged, measured=measured)


def predict_split(
    network: TIMMBackbone, card: ModelCard, processed: Path, name: Split, batch_size: int
) -> tuple[PackedSplit, Tensor, Tensor]:
    """Return a split of packed data with logits, float32 (N, classes), and labels, int64 (N,), of its images.

    Raises UserError if the data have other classes, another image size, other channels or other splits than those the
    model was trained on.
    """
    metadata = load_metadata(processed)
    size, channels = card.preprocessing.image_size, card.preprocessing.channels
    if (card.classes, size, channels) != (metadata.classes, metadata.image_size, metadata.channels):
        raise UserError(
            f"the model was trained on {card.training.data} ({len(card.classes)} classes, {size}x{size}x{channels}), "
            f"{processed} holds {metadata.data} ({metadata.summary()})"
            f"{_other_classes(card.classes, metadata.classes)}; evaluate it on data of its own kind"
        )
    if card.training.splits_sha256 != metadata.splits_sha256:
        raise UserError(
            f"{processed} is split otherwise than the data that the model was trained on, so its test images may be "
            "ones it has seen; train it on these splits (`dvc repro`), or restore the data's params"
        )
    split = load_split(processed, name)
    # the model's own mean and std: it is measured as it will be used, even if the training images have changed since
    own = metadata.model_copy(update={"mean": card.preprocessing.mean, "std": card.preprocessing.std})
    batches = EvalBatches(split, own, whole(batch_size), image_size=card.architecture.image_size)
    return split, *predict(network, batches, device(card.provenance.reproducible))


def metric_keys(extra: Sequence[str]) -> dict[str, str]:
    """Return {its key in test.json: the name in `evaluate.metrics`} of further metrics.

    Raises UserError for a key that another metric has, torchmetrics' ones included.
    """
    keys: dict[str, str] = {}
    if not extra:
        return keys
    from torchmetrics.functional import classification

    for name in extra:
        key = name.partition(":")[2] if is_part(name) else name
        taken = key in {*ALWAYS, *OF_CONFIDENCE, *keys}
        if taken or (is_part(name) and hasattr(classification, f"multiclass_{key}")):
            raise UserError(f"evaluate.metrics: {key} is the name of another metric; remove or rename {name}")
        keys[key] = name
    return keys


def check_metrics(extra: Sequence[str]) -> None:
    """Raise UserError for further metrics that can be refused before there are predictions."""
    for name in metric_keys(extra).values():
        if is_part(name):
            create_part(name)
        else:
            extra_metric(name, torch.full((4, 4), 0.25), torch.arange(4))


def check_budget(needs: Mapping[str, float | int | None], budget: BudgetParams) -> None:
    """Raise UserError, naming each excess, for a model that needs more than its budget allows.

    needs: by the names in `evaluate.budget`; one that is missing is not looked at, one that is None is an excess.
    """
    beyond = [
        f"evaluate.budget.{name} = {most:,}: this model {'needs ' + shown(need) if need else 'cannot be counted'}"
        for name, most in budget.model_dump().items()
        if most is not None and name in needs and ((need := needs[name]) is None or need > most)
    ]
    if beyond:
        raise UserError(f"{'; '.join(beyond)}; take a smaller model.name, or raise the budget")


def _other_classes(trained: list[str], given: list[str]) -> str:
    """Return how the classes of the data differ from those of the model; nothing if they do not."""
    missing = [name for name in trained if name not in given]
    unknown = [name for name in given if name not in trained]
    if not missing and not unknown:
        return "" if trained == given else ", the same classes in another order"
    said = [("not in these data", missing), ("unknown to the model", unknown)]
    return "".join(f", {what}: {listed(names)}" for what, names in said if names)


def extra_metric(name: str, probabilities: Tensor, labels: Tensor) -> float | None:
    """Return a multiclass metric of torchmetrics, with its defaults, or one of the user's own; None if undefined.

    name: without the prefix, e.g. auroc for `multiclass_auroc`; probabilities: (N, classes); labels: (N,). Averages
    over the classes leave out those for which the metric is undefined. Raises UserError for a name that torchmetrics
    does not have and for a metric that is not one number. One of the user's own gets copies of labels and
    probabilities as NumPy arrays.
    """
    from torchmetrics.functional import classification

    if is_part(name):
        value = create_part(name)(labels.numpy().copy(), probabilities.numpy().copy())
        if not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
            raise UserError(f"evaluate.metrics: {name} gives no number")
        return _rounded(value)
    known = [key.removeprefix("multiclass_") for key in dir(classification) if key.startswith("multiclass_")]
    if name not in known:
        near = nearest(name, known)
        raise UserError(f"evaluate.metrics: torchmetrics has no multiclass {name!r}; it has {', '.join(near or known)}")
    metric, classes = getattr(classification, f"multiclass_{name}"), probabilities.shape[1]
    images = labels.bincount(minlength=classes)
    claims = probabilities.argmax(dim=1).bincount(minlength=classes)
    has_images, has_others = images > 0, images < len(labels)
    defined = {
        **dict.fromkeys(OF_IMAGES, has_images),
        **dict.fromkeys(OF_IMAGES_AND_OTHERS, has_images & has_others),
        "specificity": has_others,
        "negative_predictive_value": claims < len(labels),
    }.get(name, torch.ones(classes, dtype=torch.bool))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes without images or others: `Evaluation.note` says it
            if not defined.all():
                return _rounded(metric(probabilities, labels, num_classes=classes, average="none")[defined].mean())
            return _rounded(metric(probabilities, labels, num_classes=classes))
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"evaluate.metrics: {name} is not one number, or needs more than its defaults") from None


def predict(network: torch.nn.Module, batches: EvalBatches, device: Literal["cuda", "cpu"]) -> tuple[Tensor, Tensor]:
    """Return logits, float32 (N, classes), and labels, int64 (N,), of every image, without padding, on the CPU.

    device: where to compute. Leaves the network in evaluation mode, on the CPU.
    """
    network = network.to(device).eval()
    with torch.inference_mode(), repaired(network, pointwise=False):
        kept = [mask_outputs(network(images.to(device)).float().cpu(), labels) for images, labels in batches]
    network.cpu()
    logits, labels = zip(*kept, strict=True)
    return torch.cat(logits), torch.cat(labels)


def summarize(
    network: TIMMBackbone, card: ModelCard, split: PackedSplit, logits: Tensor, labels: Tensor, calibration_bins: int
) -> Evaluation:
    """Compute all metrics from logits (N, classes) and labels (N,).

    loss: mean cross-entropy in nats. precision, recall, f1: macro averages over the classes for which they are defined;
    the precision of a class that has images and is never predicted counts as 0 there, as in scikit-learn. ece: see
    `Calibration.error`. top5_accuracy: left out for five classes or fewer. flops: see `count_flops`.
    """
    classes = len(card.classes)
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == labels).numpy()
    calibrated = calibration(confidence.numpy(), right, calibration_bins)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    images, claims, found = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diag()
    shares = (found, claims), (found, images), (2 * found, images + claims)
    scores = [part.double() / whole for part, whole in shares]  # NaN where the whole is 0
    occurring = [images + claims > 0, images > 0, images + claims > 0]
    macro = [score.nan_to_num()[counted].mean() for score, counted in zip(scores, occurring, strict=True)]
    metrics: dict[str, float | int | None] = {
        "accuracy": _rounded((predicted == labels).double().mean()),
        "loss": _rounded(F.cross_entropy(logits.double(), labels)),
    }
    if classes > 5:
        top5 = logits.topk(5, dim=1).indices
        metrics["top5_accuracy"] = _rounded((top5 == labels[:, None]).any(dim=1).double().mean())
    metrics |= {
        **dict(zip(("precision", "recall", "f1"), map(_rounded, macro), strict=True)),
        "ece": _rounded(calibrated.error),
        "images": len(labels),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "flops": count_flops(network, card.architecture),
    }
    per_class = zip(card.classes, images.tolist(), *scores, strict=True)
    rows = [ClassRow(name, count, *map(_rounded, its_scores)) for name, count, *its_scores in per_class]
    groups = find_groups(split.images, split.columns, right)
    return Evaluation(card.classes, split.ids, labels, probabilities, metrics, rows, confusion, calibrated, groups)


def _rounded(value: Tensor | float) -> float | None:
    number = float(f"{float(value):.6g}")
    return number if math.isfinite(number) else None
