"""What changed between two revisions, beside the verdict: metrics, classes, confusions, calibration, provenance."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from reprise.comparison.statistics import holm, mcnemar
from reprise.comparison.verdict import Answers
from reprise.repo.revisions import CODE, WEIGHTS, Revision

# which way is better (0: neither), and from which change on it is worth a word; the rows come in this order
DIRECTIONS: dict[str, tuple[int, float]] = {
    "accuracy": (1, 0.005),
    "loss": (-1, 0.01),
    "top5_accuracy": (1, 0.005),
    "precision": (1, 0.005),
    "recall": (1, 0.005),
    "f1": (1, 0.005),
    "ece": (-1, 0.01),
    # what `evaluate.metrics` may add; a metric that is not here has no direction
    "auroc": (1, 0.005),
    "average_precision": (1, 0.005),
    "cohen_kappa": (1, 0.005),
    "jaccard_index": (1, 0.005),
    "matthews_corrcoef": (1, 0.005),
    "specificity": (1, 0.005),
    "hamming_distance": (-1, 0.005),
    "hinge_loss": (-1, 0.01),
    "images": (0, 1),
}
# those that every evaluation defines
ALWAYS = {"accuracy", "loss", "top5_accuracy", "precision", "recall", "f1", "ece"}
# of a cost: as a share of the former value
COSTS = {"parameters": 0.01, "MACs": 0.01, "model size, bytes": 0.01}


@dataclass(frozen=True)
class MetricChange:
    """One metric; None where a revision has it not, or it is undefined. change: what to say of it, in a word or two."""

    name: str
    base: float | None
    head: float | None
    better: Literal["higher", "lower", "-"]
    change: str


@dataclass(frozen=True)
class ClassChange:
    """One class: its test images, those that each model finds, the change's p-value as corrected for all classes."""

    name: str
    images: int
    base_right: int
    head_right: int
    p: float

    @property
    def difference(self) -> float:
        """Change of the recall."""
        return (self.head_right - self.base_right) / self.images


def metric_changes(base: Revision, head: Revision) -> list[MetricChange]:
    """Return the metrics of both in a stable order: those known here, then others by name, then costs."""
    known = [name for name in DIRECTIONS if name in base.metrics or name in head.metrics]
    others = sorted((base.metrics.keys() | head.metrics.keys()) - DIRECTIONS.keys() - {"parameters", "flops"})
    rows = []
    for name in [*known, *others]:
        sign, threshold = DIRECTIONS.get(name, (0, 0.0))
        row = _change(name, base.metrics.get(name), head.metrics.get(name), sign, threshold)
        undefined = None in (base.metrics.get(name, 0), head.metrics.get(name, 0))
        rows.append(replace(row, change="undefined") if undefined else row)
    for name, share in COSTS.items():
        before, after = _costs(base)[name], _costs(head)[name]
        if before is not None or after is not None:
            rows.append(_change(name, before, after, -1, share * abs(before or 0)))
    return rows


def _costs(revision: Revision) -> dict[str, float | None]:
    flops = revision.metrics.get("flops")
    return {
        "parameters": revision.metrics.get("parameters"),
        "MACs": flops // 2 if isinstance(flops, int) else flops,
        "model size, bytes": revision.locked("outs").get(WEIGHTS, {}).get("size"),
    }


def _change(name: str, base: float | None, head: float | None, sign: int, threshold: float) -> MetricChange:
    if base is None or head is None:
        word = "new" if base is None else "gone"
    elif not (math.isfinite(base) and math.isfinite(head)):
        word = "not a number"
    elif base == head:
        word = "same"
    elif abs(head - base) < threshold:
        word = "about the same"
    else:
        word = "" if not sign else "better" if (head - base) * sign > 0 else "worse"
    return MetricChange(name, base, head, "-" if not sign else "higher" if sign > 0 else "lower", word)


def not_numbers(revision: Revision) -> list[str]:
    """Return the metrics that are not finite numbers; a further one of torchmetrics may be undefined, which is none."""
    metrics = {**{f"train.json {name}": value for name, value in revision.training.items()}, **revision.metrics}
    return [name for name, value in metrics.items() if (name in ALWAYS if value is None else not math.isfinite(value))]


def class_changes(answers: Answers, classes: list[str]) -> list[ClassChange]:
    """Return each class that has images, the largest loss of recall first."""
    found = []
    for name in classes:
        here = answers.labels == name
        if here.any():
            base, head = answers.base_right[here], answers.head_right[here]
            p = mcnemar(int((base & ~head).sum()), int((head & ~base).sum()))
            found.append(ClassChange(name, int(here.sum()), int(base.sum()), int(head.sum()), p))
    corrected = holm([change.p for change in found])
    changes = [replace(change, p=p) for change, p in zip(found, corrected, strict=True)]
    return sorted(changes, key=lambda change: (change.difference, change.p))


def confusion_changes(answers: Answers) -> list[tuple[str, str, int, int]]:
    """Return (label, predicted, images of base, of head) of the confusions that changed, the largest change first."""
    before, after = (
        Counter(zip(answers.labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
        for predicted, wrong in ((answers.base, ~answers.base_right), (answers.head, ~answers.head_right))
    )
    pairs = [(label, guess, before[label, guess], after[label, guess]) for label, guess in before.keys() | after.keys()]
    changed = [pair for pair in pairs if pair[2] != pair[3]]
    return sorted(changed, key=lambda pair: (-abs(pair[3] - pair[2]), pair[2] - pair[3], pair[0], pair[1]))


@dataclass(frozen=True)
class Calibration:
    """ece, in 0..1; mean confidence; per bin that holds images: their number, mean confidence and accuracy."""

    ece: float
    confidence: float
    bins: list[tuple[int, float, float]]


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int) -> Calibration:
    """Measure calibration over bins of equal width, each closed above (Guo et al., ICML 2017); NaN is left out."""
    known = np.isfinite(confidence)
    confidence, right = confidence[known], right[known]
    if not len(confidence):
        return Calibration(math.nan, math.nan, [])
    bin_of = np.clip(np.ceil(confidence * bins).astype(int), 1, bins) - 1
    filled = [
        (int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
        for inside in (bin_of == number for number in range(bins))
        if inside.any()
    ]
    ece = sum(count * abs(accuracy - mean) for count, mean, accuracy in filled) / len(confidence)
    return Calibration(ece, float(confidence.mean()), filled)


def different(base: dict[str, Any], head: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, base's value, head's value) of what differs, by name; None where one has it not."""
    names = sorted(base.keys() | head.keys())
    return [(name, base.get(name), head.get(name)) for name in names if base.get(name) != head.get(name)]


def provenance_changes(base: Revision, head: Revision) -> list[tuple[str, Any, Any]]:
    """Return what differs in the terms of the two trainings: packages, threads, device, instruction set, promise."""
    records = [revision.model.get("provenance") or {} for revision in (base, head)]
    if not all(records):
        return []
    terms = [
        {**{name: value for name, value in record.items() if not name.endswith("_sha256")}, "packages": None}
        | {f"package {name}": version for name, version in (record.get("packages") or {}).items()}
        for record in records
    ]
    return different(terms[0], terms[1])


def code_changes(base: Revision, head: Revision) -> list[str]:
    """Return the scripts and packages of the stages that differ, by dvc.lock."""
    sources = [
        {path: entry.get("md5") for path, entry in revision.locked("deps").items() if path.startswith(CODE)}
        for revision in (base, head)
    ]
    return [name for name, _, _ in different(sources[0], sources[1])]
