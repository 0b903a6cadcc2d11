"""Heads are what they are called, whatever the scale of the features, and fold into one weight and bias."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from reprise.features.heads import linear_path, prototype_path
from reprise.loader.batches import class_weights


@pytest.fixture
def cloud():
    """Three overlapping classes of unequal size in 20 features of unequal scale, one of them constant."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 120 + [1] * 60 + [2] * 20)
    features = torch.randn(200, 20, generator=draw) + torch.randn(3, 20, generator=draw)[labels] * 0.7
    features = features * torch.logspace(-2, 2, 20) + 7
    features[:, 3] = 0.125
    return features, labels


def logits(head, features):
    return features.double() @ head.weight.double().T + head.bias.double()


@pytest.mark.parametrize("balance", ["balanced", None])
def test_the_linear_head_is_scikit_learns_at_every_strength(cloud, balance):
    features, labels = cloud
    criterion = nn.CrossEntropyLoss(class_weights(labels, 3).double() if balance else None)
    for head in list(linear_path(features, labels, criterion, 3))[::2]:
        regression = LogisticRegression(C=1 / (200 * head.strength), class_weight=balance, tol=1e-10, max_iter=10_000)
        theirs = make_pipeline(StandardScaler(), regression).fit(features.double(), labels)
        expected = torch.from_numpy(theirs.predict_proba(features.double()))
        assert torch.isclose(criterion(logits(head, features), labels), criterion(expected.log(), labels), 0, 1e-4)


def test_prototypes_answer_the_nearest_class_mean_at_every_scale(cloud):
    nearest = make_pipeline(StandardScaler(), NearestCentroid()).fit(*cloud).predict(cloud[0])
    for head in prototype_path(*cloud, nn.CrossEntropyLoss(), 3):
        assert logits(head, cloud[0]).argmax(1).tolist() == nearest.tolist()
