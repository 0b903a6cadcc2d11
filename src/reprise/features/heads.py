"""Classifiers fitted to features, which take the place of a network's last layer.

Each comes as a path of fits, of which the validation split chooses: a path sets the tensors of a layer and yields the
number that tells its fits apart. All is computed in float64, but for the steps of an mlp; what is fitted to
standardized features is folded back into weight and bias for the features as they are.
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import CrossEntropyLoss, Linear, Module, Sequential

from reprise.model.classifiers import MOST, Neighbors

STRENGTHS = tuple(10 ** (1 - step / 2) for step in range(11))  # of the penalty: 10 to 0.0001
SCALES = tuple(2.0**power for power in range(-12, 1))
HIDDEN = 256
STEPS = tuple(round(5 * 2 ** (step / 2)) for step in range(15))  # 5, 7, 10, ... 640
NEIGHBORS = 1, 3, 5, 10, 20, MOST


def linear_path(features: Tensor, labels: Tensor, criterion: CrossEntropyLoss, layer: Linear) -> Iterator[float]:
    """Fit a logistic regression for each of STRENGTHS, from the strongest penalty to the weakest.

    features: float32 (N, D); labels: int64 (N,). Each minimizes the criterion (class weights and smoothed labels
    included) + strength / 2 * the squares of the weights for standardized features, by L-BFGS (Liu and Nocedal,
    Mathematical Programming 1989), beginning at the one before. scikit-learn's `C` is 1 / (N * strength).
    """
    mean, std, inputs = _standardized(features)
    parameters = torch.zeros(layer.out_features, inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
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
        _fold(layer, parameters.detach(), mean, std)
        yield strength


def prototype_path(features: Tensor, labels: Tensor, criterion: CrossEntropyLoss, layer: Linear) -> Iterator[float]:
    """Fit the nearest class mean (Mensink et al., TPAMI 2013) of standardized features, for each of SCALES.

    Logits are scale * (m x - m m / 2), which differs from -scale / 2 times the squared distance of x to the class mean
    m by the same for all classes: the scale decides the probabilities, and no answer. Each class counts the same.
    """
    mean, std, inputs = _standardized(features)
    sums = torch.zeros(layer.out_features, inputs.shape[1], dtype=torch.float64).index_add_(0, labels, inputs)
    means = sums / torch.bincount(labels, minlength=len(sums)).clamp(min=1)[:, None]
    parameters = torch.cat([means, -means.square().sum(1, keepdim=True) / 2], dim=1)
    for scale in SCALES:
        _fold(layer, scale * parameters, mean, std)
        yield scale


def mlp_path(features: Tensor, labels: Tensor, criterion: CrossEntropyLoss, layer: Sequential) -> Iterator[float]:
    """Train a network with one hidden layer, and yield it after each of STEPS.

    layer: its initial weights, for standardized features. A step is one of Adam on all images at once, so there is no
    order of images that a result depends on.
    """
    mean, std, inputs = _standardized(features)
    trained, inputs = copy.deepcopy(layer), inputs.float()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = criterion(trained(inputs).double(), labels)
        value.backward()
        return value

    for step in range(1, STEPS[-1] + 1):
        optimizer.step(loss)
        if step in STEPS:
            layer.load_state_dict(trained.state_dict())
            weight, bias = layer.get_parameter("0.weight"), layer.get_parameter("0.bias")
            _fold(layer[0], torch.cat([weight, bias[:, None]], dim=1).double(), mean, std)
            yield step


def neighbor_path(features: Tensor, labels: Tensor, criterion: CrossEntropyLoss, layer: Neighbors) -> Iterator[float]:
    """Store the features, and yield each of NEIGHBORS for k. Votes have the criterion's class weights."""
    mean, std, inputs = _standardized(features)
    votes = F.one_hot(labels, layer.votes.shape[1]) * (1 if criterion.weight is None else criterion.weight)
    stored = {"mean": mean, "std": std, "examples": F.normalize(inputs), "votes": votes}
    for k in [k for k in NEIGHBORS if k < len(features)] or [1]:
        layer.load_state_dict({**stored, "k": torch.tensor([k])})
        yield k


def _standardized(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and standard deviation (D,), 1 for a constant, and the standardized features (N, D), in float64."""
    inputs = features.double()
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 1e-6 * inputs.abs().amax(0).clamp(min=1e-12), std, 1.0)
    return mean, std, (inputs - mean) / std


def _fold(layer: Module, parameters: Tensor, mean: Tensor, std: Tensor) -> None:
    """Set a linear layer for features as they are, of weights and bias (outputs, D + 1) for standardized ones."""
    weight = parameters[:, :-1] / std
    layer.load_state_dict({"weight": weight, "bias": parameters[:, -1] - weight @ mean})
