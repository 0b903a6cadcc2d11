"""Classifiers other than timm's one linear layer; a network's tensors before the classifier keep timm's names."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprise.model.artifact import Architecture

MOST = 50  # neighbors
WIDTH = 0.1  # a difference of cosines
TIE = 1e-5  # of a vote
SPREAD = 0.1  # of a vote


class Neighbors(nn.Module):
    """k nearest neighbors by the cosine of standardized features, as a classifier whose tensors are its examples.

    An example's vote grows with how much nearer it is than the nearest one that is no neighbor, up to one at WIDTH, so
    that rounding cannot turn an answer where two are equally near; SPREAD is shared by all classes. Its parameters, of
    which none is trained: mean and std (D,) of the features; examples (N, D), standardized, of length 1; votes
    (N, classes) of each as a whole neighbor; k (1,), at most MOST.
    """

    def __init__(self, features: int, classes: int, examples: int) -> None:
        super().__init__()
        shapes = (features,), (features,), (examples, features), (examples, classes)
        self.mean, self.std, self.examples, self.votes = (nn.Parameter(torch.ones(shape), False) for shape in shapes)
        self.k = nn.Parameter(torch.ones(1, dtype=torch.int64), False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes), whose softmax are shares of votes, of features (B, D)."""
        cosines = F.linear(F.normalize((x - self.mean) / self.std), self.examples)
        nearest = cosines.topk(min(MOST + 1, len(self.examples))).values
        nearer = cosines - nearest.index_select(1, self.k.clamp(max=len(self.examples) - 1))
        weights = torch.where(nearer < 0, 0.0, (nearer / WIDTH).clamp(max=1) + TIE)
        return (weights @ self.votes + SPREAD / self.votes.shape[1]).log()


def set_classifier(network: Any, architecture: Architecture) -> None:
    """Replace the linear classifier of a timm model by the one that the architecture names, if it names one.

    The new one is initialized by torch's current seed.
    """
    if (shape := architecture.classifier) is None:
        return
    layer, classes = network.get_classifier(), architecture.num_classes
    if shape.kind == "knn":
        new: nn.Module = Neighbors(layer.in_features, classes, shape.size)
    else:
        new = nn.Sequential(nn.Linear(layer.in_features, shape.size), nn.GELU(), nn.Linear(shape.size, classes))
    network.set_submodule(next(name for name, module in network.named_modules() if module is layer), new)
