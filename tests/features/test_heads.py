"""Heads are what they are called, whatever the scale of the features, and take features as they are."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from reprise.features.heads import NEIGHBORS, STEPS, linear_path, mlp_path, neighbor_path, prototype_path
from reprise.loader.batches import class_weights
from reprise.model.classifiers import SPREAD, TIE, WIDTH, Neighbors


@pytest.fixture
def cloud():
    """Three overlapping classes of unequal size in 20 features of unequal scale, one of them constant."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 120 + [1] * 60 + [2] * 20)
    features = torch.randn(200, 20, generator=draw) + torch.randn(3, 20, generator=draw)[labels] * 0.7
    features = features * torch.logspace(-2, 2, 20) + 7
    features[:, 3] = 0.125
    return features, labels


@pytest.mark.parametrize("balance", ["balanced", None])
def test_the_linear_head_is_scikit_learns_at_every_strength(cloud, balance):
    features, labels = cloud
    criterion = nn.CrossEntropyLoss(class_weights(labels, 3).double() if balance else None)
    layer = nn.Linear(20, 3)
    for strength in linear_path(features, labels, criterion, layer):
        regression = LogisticRegression(C=1 / (200 * strength), class_weight=balance, tol=1e-10, max_iter=10_000)
        theirs = make_pipeline(StandardScaler(), regression).fit(features.double(), labels)
        expected = torch.from_numpy(theirs.predict_proba(features.double()))
        assert torch.isclose(criterion(layer(features).double(), labels), criterion(expected.log(), labels), 0, 1e-4)


def test_prototypes_answer_the_nearest_class_mean_at_every_scale(cloud):
    nearest = make_pipeline(StandardScaler(), NearestCentroid()).fit(*cloud).predict(cloud[0])
    layer = nn.Linear(20, 3)
    for _ in prototype_path(*cloud, nn.CrossEntropyLoss(), layer):
        assert layer(cloud[0]).argmax(1).tolist() == nearest.tolist()


def test_neighbors_have_the_votes_of_scikit_learns_by_cosine_for_every_k(cloud):
    features, labels = cloud
    weights, layer, seen = class_weights(labels, 3), Neighbors(20, 3, 200), []
    for k in neighbor_path(*cloud, nn.CrossEntropyLoss(weights.double()), layer):
        neighbors = KNeighborsClassifier(k + 1, metric="cosine", weights=lambda far: vote(far[:, -1:] - far))
        expected = torch.tensor(make_pipeline(StandardScaler(), neighbors).fit(*cloud).predict_proba(features + 0.1))
        votes = layer(features + 0.1).exp().double() - SPREAD / 3
        assert torch.allclose(nn.functional.normalize(votes / weights, p=1), expected, 0, 1e-3)
        seen.append(k)
    assert seen == list(NEIGHBORS)


def vote(nearer):
    return (nearer / WIDTH).clip(0, 1) + TIE


def test_as_near_neighbors_beyond_k_share_its_vote_and_a_single_image_is_everyones_neighbor():
    features, labels = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0]]), torch.tensor([0, 1, 2, 1])
    layer = Neighbors(2, 3, 4)
    assert next(neighbor_path(features, labels, nn.CrossEntropyLoss(), layer)) == 1
    votes = layer(features).exp() - SPREAD / 3
    assert torch.allclose(votes, torch.tensor([[1 + TIE, 2 * TIE, TIE], *[[0, 2 * TIE, TIE]] * 3]), 0, 1e-6)
    layer = Neighbors(2, 3, 1)
    assert list(neighbor_path(features[:1], labels[:1], nn.CrossEntropyLoss(), layer)) == [1]
    assert layer(features).argmax(1).tolist() == [0] * 4


def test_an_mlp_learns_what_no_linear_head_can_by_its_seed_alone():
    inputs = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    labels, inputs, made = (inputs.prod(1) > 0).long(), inputs * torch.tensor([0.01, 100]) + 7, []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        layer = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 2))
        assert tuple(mlp_path(inputs, labels, nn.CrossEntropyLoss(), layer)) == STEPS
        assert (layer(inputs).argmax(1) == labels).float().mean() > 0.95
        made.append(layer[0].weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
