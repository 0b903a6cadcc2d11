"""How far probabilities can be relied on, on test images: NLL, Brier score, ECE, sets, and risk against coverage."""

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from reprise.evaluation.calibration import bin_numbers
from reprise.runtime.intervals import mean_interval

POINTS = 100  # of the risk-coverage curve, at most


def reliability(logits: Tensor, labels: Tensor, bins: int) -> dict[str, tuple[float, float, float]]:
    """Return {loss, brier, ece: (value, low, high)} of logits (N, classes) with labels (N,), 95 % bootstrap intervals.

    loss: mean cross-entropy in nats; brier: mean squared distance of the probabilities from 1 for the label and 0 for
    the others; ece: see `Calibration.error`, with so many bins.
    """
    losses, probabilities = F.cross_entropy(logits.double(), labels, reduction="none"), logits.double().softmax(dim=1)
    distances = (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    gaps = ((predicted == labels).double() - confidence).numpy()[:, None]
    gaps = gaps * np.eye(bins)[bin_numbers(confidence.numpy(), bins)]  # (N, bins), each image in its own

    def total(means: np.ndarray) -> Any:
        return np.abs(means).sum(axis=-1)

    found = {"loss": losses.numpy()[:, None], "brier": distances.numpy()[:, None], "ece": gaps}
    return {name: (float(total(each.mean(axis=0))), *mean_interval(each, of=total)) for name, each in found.items()}


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
