"""Classifiers fitted to features: each is a weight and a bias, so it takes the place of a network's last layer.

A head comes as a path, one for each strength, of which the validation split chooses. All is computed in float64, and
what is fitted to standardized features is folded back into weight and bias for the features as they are.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRENGTHS = tuple(10 ** (1 - step / 2) for step in range(11))  # of the penalty: 10 to 0.0001
SCALES = tuple(2.0**power for power in range(-12, 1))


class Head(NamedTuple):
    """weight (classes, D) and bias (classes,), float32. strength: of the L2 penalty, or the scale of the distances."""

    weight: Tensor
    bias: Tensor
    strength: float


def linear_path(features: Tensor, labels: Tensor, criterion: nn.CrossEntropyLoss, classes: int) -> Iterator[Head]:
    """Yield a logistic regression for each of STRENGTHS, from the strongest penalty to the weakest.

    features: float32 (N, D); labels: int64 (N,). Each minimizes the criterion (class weights and smoothed labels
    included) + strength / 2 * the squares of the weights for standardized features, by L-BFGS (Liu and Nocedal,
    Mathematical Programming 1989), beginning at the one before. scikit-learn's `C` is 1 / (N * strength).
    """
    mean, std, inputs = _standardized(features)
    parameters = torch.zeros(classes, inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    for strength in STRENGTHS:
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=2000, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def loss(optimizer: torch.optim.Optimizer = optimizer, strength: float = strength) -> Tensor:
            weight, bias = parameters[:, :-1], parameters[:, -1]
            value: Tensor = criterion(F.linear(inputs, weight, bias), labels) + strength / 2 * weight.square().sum()
            (parameters.grad,) = torch.autograd.grad(value, parameters)
            return value

        optimizer.step(loss)
        yield _folded(parameters.detach(), mean, std, strength)


def prototype_path(features: Tensor, labels: Tensor, criterion: nn.CrossEntropyLoss, classes: int) -> Iterator[Head]:
    """Yield the nearest class mean (Mensink et al., TPAMI 2013) of standardized features, for each of SCALES.

    Logits are scale * (m x - m m / 2), which differs from -scale / 2 times the squared distance of x to the class mean
    m by the same for all classes: the scale decides the probabilities, and no answer. Each class counts the same.
    """
    mean, std, inputs = _standardized(features)
    sums = torch.zeros(classes, inputs.shape[1], dtype=torch.float64).index_add_(0, labels, inputs)
    means = sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
    parameters = torch.cat([means, -means.square().sum(1, keepdim=True) / 2], dim=1)
    for scale in SCALES:
        yield _folded(scale * parameters, mean, std, scale)


def _standardized(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation (D,), 1 for a constant, and the standardized features (N, D), in float64."""
    inputs = features.double()
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 1e-6 * inputs.abs().amax(0).clamp(min=1e-12), std, 1.0)
    return mean, std, (inputs - mean) / std


def _folded(parameters: Tensor, mean: Tensor, std: Tensor, strength: float) -> Head:
    """Return the head for features as they are, of weights and bias (classes, D + 1) for standardized ones."""
    weight = parameters[:, :-1] / std
    return Head(weight.float(), (parameters[:, -1] - weight @ mean).float(), strength)
