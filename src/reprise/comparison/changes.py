"""What changed between two revisions besides the verdict: metrics, classes, confusions, calibration, provenance."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reprise.comparison.statistics import mcnemar
from reprise.comparison.verdict import LEVEL, Answers
from reprise.repo.revisions import CODE, WEIGHTS, Revision
from reprise.runtime.intervals import holm

# the sign of an improvement (0: none), and from which change on it is worth a word; the rows come in this order
DIRECTIONS: dict[str, tuple[int, float]] = {"accuracy": (1, 0.005), "loss": (-1, 0.01)}
DIRECTIONS |= dict.fromkeys(("top5_accuracy", "precision", "recall", "f1"), (1, 0.005)) | {
    "ece": (-1, 0.01),
    "brier": (-1, 0.01),
}
ALWAYS = set(DIRECTIONS)  # those that every evaluation defines
# what `evaluate.metrics` may add; a metric that is not here has no direction
DIRECTIONS |= dict.fromkeys(("auroc", "average_precision", "cohen_kappa", "jaccard_index"), (1, 0.005))
DIRECTIONS |= dict.fromkeys(("matthews_corrcoef", "specificity"), (1, 0.005))
DIRECTIONS |= dict.fromkeys(("hamming_distance", "selective_risk"), (-1, 0.005)) | {"images": (0, 1)}
DIRECTIONS |= dict.fromkeys(("hinge_loss", "brier"), (-1, 0.01))
COSTS = {"parameters": 0.01, "MACs": 0.01, "model size, bytes": 0.01}  # the threshold as a share of the former value
BETTER = {1: "higher", -1: "lower", 0: "-"}


@dataclass(frozen=True)
class PartChange:
    """A class or a group: its test images, how many each model has right, and the p-value, corrected for all."""

    name: str
    images: int
    base_right: int
    head_right: int
    p: float

    @property
    def difference(self) -> float:
        """Share of the images that head has right, minus base's."""
        return (self.head_right - self.base_right) / self.images


def metric_changes(base: Revision, head: Revision) -> list[tuple[str, float | None, float | None, str, str]]:
    """Return (name, base's value, head's value, which is better, the change in a few words) of the metrics of both.

    They come in a stable order: those known here, then others by name, then costs. A value is None where a revision
    lacks the metric, or it is undefined.
    """
    before, after = _metrics_and_costs(base), _metrics_and_costs(head)
    known = before.keys() | after.keys()
    rows = []
    for name in [*DIRECTIONS, *sorted(known - DIRECTIONS.keys() - COSTS.keys()), *COSTS]:
        one, other = before.get(name), after.get(name)
        sign, threshold = DIRECTIONS.get(name, (-1 if name in COSTS else 0, COSTS.get(name, 0) * abs(one or 0)))
        undefined = None in (before.get(name, 0), after.get(name, 0))
        word = "undefined" if undefined else _change(one, other, sign, threshold)
        if name in known:
            rows.append((name, one, other, BETTER[sign], word))
    return rows


def _metrics_and_costs(revision: Revision) -> dict[str, float | None]:
    """Return the metrics by name, and the costs where they are known; a FLOP count is twice the MACs."""
    metrics = dict(revision.metrics)
    parameters, flops = metrics.pop("parameters", None), metrics.pop("flops", None)
    size = revision.locked("outs").get(WEIGHTS, {}).get("size")
    costs = dict(zip(COSTS, (parameters, flops // 2 if isinstance(flops, int) else flops, size), strict=True))
    return metrics | {name: value for name, value in costs.items() if value is not None}


def _change(base: float | None, head: float | None, sign: int, threshold: float) -> str:
    if base is None or head is None:
        return "new" if base is None else "gone"
    if not (math.isfinite(base) and math.isfinite(head)):
        return "not a number"
    if base == head:
        return "same"
    if abs(head - base) < threshold:
        return "about the same"
    return "" if not sign else "better" if (head - base) * sign > 0 else "worse"


def not_numbers(revision: Revision) -> list[str]:
    """Return the metrics that are not finite numbers, but those of `evaluate.metrics` that are undefined (None)."""
    metrics = {**{f"train.json {name}": value for name, value in revision.training.items()}, **revision.metrics}
    return [name for name, value in metrics.items() if (name in ALWAYS if value is None else not math.isfinite(value))]


def part_changes(answers: Answers, parts: Mapping[str, np.ndarray], looked_at: int = 0) -> list[PartChange]:
    """Return each class or group that has images, the largest loss first; parts: {name: its images}, bool (N,) each.

    looked_at: how many groups these were chosen from, if there are more: p is corrected for all.
    """
    found = []
    for name, here in parts.items():
        if here.any():
            base, head = answers.right[:, here]
            p = mcnemar(int((base & ~head).sum()), int((head & ~base).sum()))
            found.append(PartChange(name, int(here.sum()), int(base.sum()), int(head.sum()), p))
    corrected = holm([*(change.p for change in found), *[1.0] * (looked_at - len(found))])
    changes = [replace(change, p=p) for change, p in zip(found, corrected, strict=False)]
    return sorted(changes, key=lambda change: (change.difference, change.p))


def significant(found: Sequence[PartChange]) -> dict[str, list[PartChange]]:
    """Return those significantly "worse" or "better", if there are any; the largest change first."""
    worse = [change for change in found if change.p <= LEVEL and change.difference < 0]
    better = [change for change in reversed(found) if change.p <= LEVEL and change.difference > 0]
    return {word: some for word, some in (("worse", worse), ("better", better)) if some}


def confusion_changes(answers: Answers) -> list[tuple[str, str, int, int]]:
    """Return (label, predicted, images of base, of head) of the confusions that changed, the largest change first."""
    before, after = (
        Counter(zip(answers.labels[~right].tolist(), predicted[~right].tolist(), strict=True))
        for predicted, right in zip(answers.predicted, answers.right, strict=True)
    )
    pairs = [(label, guess, before[label, guess], after[label, guess]) for label, guess in before.keys() | after.keys()]
    changed = [pair for pair in pairs if pair[2] != pair[3]]
    return sorted(changed, key=lambda pair: (-abs(pair[3] - pair[2]), pair[2] - pair[3], pair[0], pair[1]))


def different(base: dict[str, Any], head: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, base's value, head's value) of what differs, by name; None where one lacks it."""
    names = sorted(base.keys() | head.keys())
    return [(name, base.get(name), head.get(name)) for name in names if base.get(name) != head.get(name)]


def provenance_changes(base: Revision, head: Revision) -> list[tuple[str, Any, Any]]:
    """Return what differs in the provenance of the two trainings: packages, threads, device, instruction set, ..."""
    found = []
    for record in (revision.model.get("provenance") or {} for revision in (base, head)):
        packages = {f"package {name}": version for name, version in (record.get("packages") or {}).items()}
        own = {name: value for name, value in record.items() if name != "packages" and not name.endswith("_sha256")}
        found.append(own | packages)
    return different(*found) if all(found) else []


def code_changes(base: Revision, head: Revision) -> list[str]:
    """Return the scripts and packages of the stages that differ, by dvc.lock."""
    changed = different(base.md5s("deps"), head.md5s("deps"))
    return [path for path, _, _ in changed if path.startswith(CODE)]
