"""A debug mode uses what it says of the data, and what is made with it never passes for a result."""

import numpy as np
import pytest
import torch

from reprise.data.formats.packed import PackedSplit
from reprise.runtime.errors import UserError
from reprise.training.debug import Debug
from reprise.training.train import Options, train


def split(count, first=0):
    """Images whose pixels are their label, and ids that name it."""
    labels = np.arange(first, first + count)
    images = labels.astype(np.uint8).reshape(-1, 1, 1, 1).repeat(4, axis=1)
    return PackedSplit(images, labels, [str(label) for label in labels])


def test_nothing_asked_for_changes_nothing():
    one, two = split(50), split(20, 100)
    assert Debug().splits(one, two, 8, seed=0) == (one, two)
    assert Debug(detect_anomaly=True).deciding() == {}


@pytest.mark.parametrize(
    ("debug", "counts"),
    [
        (Debug(limit=0.1), (5, 2)),
        (Debug(limit=0.01), (1, 1)),
        (Debug(batches=1), (8, 8)),
        (Debug(batches=3), (24, 20)),  # no more than there are
        (Debug(batches=2, overfit=True), (16, 16)),
        (Debug(limit=0.2, batches=3, overfit=True), (10, 10)),
    ],
)
def test_a_mode_leaves_so_many_images_each_with_its_own_label_and_id(debug, counts):
    train_split, val_split = debug.splits(split(50), split(20, 100), 8, seed=0)
    assert (len(train_split), len(val_split)) == counts
    for few in (train_split, val_split):
        assert len(set(few.labels.tolist())) == len(few)
        assert few.images[:, 0, 0, 0].tolist() == few.labels.tolist() == [int(name) for name in few.ids]
    assert debug.overfit == (train_split is val_split)
    assert all(label >= 100 for label in val_split.labels) == (not debug.overfit)


def test_the_images_are_drawn_from_all_of_a_split_by_the_seed():
    drawn = [Debug(limit=0.2).splits(split(50), split(20), 8, seed)[0].labels.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 25  # not the first tenth, which in a sorted split is one class


@pytest.mark.parametrize(("wrong", "said"), [({"limit": 0.0}, "--limit 0"), ({"batches": 0}, "--overfit 0")])
def test_what_is_not_possible_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        Debug(**wrong)


def test_a_limited_training_has_a_record_of_its_own_and_one_with_more_checks_the_same(digits, tiny_params):
    params = tiny_params("train.epochs=1")
    plain, limited, checked = (
        train(digits, params.model, params.train, options=Options(debug=debug))
        for debug in (Debug(), Debug(limit=0.5), Debug(detect_anomaly=True))
    )
    assert limited.card.provenance.params_sha256 != plain.card.provenance.params_sha256
    assert checked.card == plain.card
    for one, two in zip(checked.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_sound_model_learns_a_few_images_by_heart(digits, tiny_params):
    params = tiny_params("train.epochs=25", *(f"train.augment.{name}=0" for name in ("rotate", "scale", "shift")))
    result = train(digits, params.model, params.train, options=Options(debug=Debug(batches=1, overfit=True)))
    assert result.history[-1].train_accuracy == 1.0
