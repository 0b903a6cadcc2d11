"""Heads are what they are called, whatever the scale of the features, and fold into one weight and bias."""

from itertools import islice

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import nn

from reprise.features.heads import STRENGTHS, linear_path, prototype_path
from reprise.loader.batches import class_weights


@pytest.fixture
def cloud():
    """Three overlapping classes of unequal size in 20 features of very unequal scale, one of them constant."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 120 + [1] * 60 + [2] * 20)
    features = torch.randn(200, 20, generator=draw) + torch.randn(3, 20, generator=draw)[labels] * 0.7
    features = features * torch.logspace(-4, 4, 20) + 7
    features[:, 3] = 0.1
    return features, labels


def standardized(features):
    inputs = features.double().numpy()
    std = inputs.std(0)
    return (inputs - inputs.mean(0)) / np.where(std < 1e-8, 1, std)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_of_the_linear_head_is_that_of_scikit_learn(cloud, balanced):
    features, labels = cloud
    weight = class_weights(labels, 3).double() if balanced else None
    criterion, inputs = nn.CrossEntropyLoss(weight), torch.from_numpy(standardized(features))
    for head in islice(linear_path(features, labels, criterion, 3), 0, None, 3):
        theirs = LogisticRegression(
            C=1 / (len(labels) * head.strength),
            class_weight="balanced" if balanced else None,
            tol=1e-10,
            max_iter=10_000,
        ).fit(inputs, labels)
        std = features.double().std(0, correction=0)
        std[3] = 1

        def objective(weights, bias, strength=head.strength):
            penalty = strength / 2 * weights.square().sum()
            return float(criterion(inputs @ weights.T + bias, labels) + penalty)

        ours = head.weight.double() * std
        bias = head.bias.double() + head.weight.double() @ features.double().mean(0)
        reference = objective(torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_))
        assert objective(ours, bias) == pytest.approx(reference, abs=1e-4)
        assert head.weight.isfinite().all()


def test_smoothed_labels_and_weaker_penalties_reach_the_solution(cloud):
    features, labels = cloud
    hard, soft = (list(linear_path(features, labels, nn.CrossEntropyLoss(label_smoothing=s), 3)) for s in (0.0, 0.3))
    assert [head.strength for head in hard] == list(STRENGTHS)
    scale = features.std(0)
    sizes = [float((head.weight * scale).norm()) for head in hard]
    assert sizes == sorted(sizes)  # the weaker the penalty, the larger the weights
    assert float((soft[-1].weight * scale).norm()) < sizes[-1] / 2


def test_the_same_features_give_the_same_bits(cloud):
    first, second = (list(linear_path(*cloud, nn.CrossEntropyLoss(), 3)) for _ in range(2))
    assert all(torch.equal(one.weight, two.weight) for one, two in zip(first, second, strict=True))


def test_prototypes_answer_the_nearest_class_mean_at_every_scale(cloud):
    features, labels = cloud
    inputs = standardized(features)
    nearest = NearestCentroid().fit(inputs, labels).predict(inputs)
    for head in prototype_path(features.double(), labels, nn.CrossEntropyLoss(), 3):
        answers = (features.double() @ head.weight.double().T + head.bias.double()).argmax(1)
        assert (answers.numpy() == nearest).mean() >= 0.99  # float32 of features whose scales differ by 10^8
