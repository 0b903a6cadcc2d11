"""How far probabilities can be relied on, on test images: NLL, Brier score, ECE, sets, and risk against coverage."""

import math
import operator
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from reprise.evaluation.calibration import bin_numbers
from reprise.runtime.intervals import mean_interval, wilson

Interval = tuple[float, float, float]  # a value, and the bounds of its interval
POINTS = 100  # of the risk-coverage curve, at most


def reliability(logits: Tensor, labels: Tensor, bins: int) -> dict[str, Interval]:
    """Return {loss, brier, ece: (value, low, high)} of logits (N, classes) with labels (N,), 95 % bootstrap intervals.

    loss: mean cross-entropy in nats; brier: mean squared distance of the probabilities from 1 for the label and 0 for
    the others; ece: see `Calibration.error`, with so many bins. The ECE of a sample is too high on average, and that of
    a resample still higher: its quantiles miss the true one. The sum over the bins of how far their gaps move bounds
    its error, so that the interval is the value plus or minus the 95 % quantile of this sum; it is rather too wide.
    """
    losses, probabilities = F.cross_entropy(logits.double(), labels, reduction="none"), logits.double().softmax(dim=1)
    distances = (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    gaps = ((predicted == labels).double() - confidence).numpy()[:, None]
    gaps = gaps * np.eye(bins)[bin_numbers(confidence.numpy(), bins)]  # (N, bins), each image in its own

    found = {"loss": losses.numpy(), "brier": distances.numpy()}
    intervals = {name: (float(each.mean()), *mean_interval(each)) for name, each in found.items()}
    ece = float(np.abs(gaps.mean(axis=0)).sum())
    # 5 % of the resampled sums lie above the upper end of an interval at 0.9
    _, moved = mean_interval(gaps - gaps.mean(axis=0), 0.9, lambda means: np.abs(means).sum(axis=1))
    return {**intervals, "ece": (ece, max(0.0, ece - moved), ece + moved)}


def kept_promises(judged: list[dict[str, Any]], labels: list[str], right: list[bool]) -> dict[str, list[Interval]]:
    """Return, as far as N images are so judged, coverage and mean set_size, the share answered and selective_risk.

    labels, right: of each image, its class and whether that is predicted. selective_risk: the share of wrong ones among
    those answered, NaN where none is. The intervals of shares are Wilson's.
    """
    shares: dict[str, tuple[int, int]] = {}
    found: dict[str, list[Interval]] = {}
    if "prediction_set" in judged[0]:
        sets = [each["prediction_set"] for each in judged]
        sizes = np.array([len(each) for each in sets], float)
        found["set_size"] = [(float(sizes.mean()), *mean_interval(sizes))]
        shares["coverage"] = sum(map(operator.contains, sets, labels)), len(sets)
    if "unknown" in judged[0]:
        answered = [good for good, each in zip(right, judged, strict=True) if not each["unknown"]]
        shares |= {"answered": (len(answered), len(judged)), "selective_risk": (answered.count(False), len(answered))}
    return found | {name: [(k / n if n else math.nan, *wilson(k, n))] for name, (k, n) in shares.items()}


def risk_coverage(probabilities: Tensor, labels: Tensor) -> list[list[str]]:
    """Return rows (coverage, risk, confidence): the share of images that are answered, the most confident first.

    risk: the share of wrong ones among them; confidence: the least of them.
    """
    confidence, predicted = (each.numpy() for each in probabilities.max(dim=1))
    order = np.argsort(-confidence, kind="stable")
    answered = np.unique(np.linspace(1, len(order), POINTS).astype(int))
    wrong = np.cumsum(predicted[order] != labels.numpy()[order])[answered - 1]
    columns = answered / len(order), wrong / answered, confidence[order[answered - 1]]
    return [[f"{number:.6g}" for number in row] for row in np.transpose(columns)]
